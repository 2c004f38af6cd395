import json
import math

import pytest
import torch

from effbench.plugin import InputError
from effbench.plugin.discovery import discover
from effbench.plugin.text_workload import TextWorkload, passages_of
from effbench.plugin.transformers_source import ByteTokenizer
from effbench.reference import texts
from effbench.reference.texts import Document, Splits
from effbench.store import cache
from tests.records import make_cell

CATALOG = discover()
TOKENIZER = ByteTokenizer()


def uniform(ids, mask):
    return torch.zeros(*ids.shape, 256)


def peeking(ids, mask):
    """A deterministic model whose answer depends on every earlier token, and would show padding that is not masked."""
    totals = (ids * mask).cumsum(1)
    return torch.stack([torch.sin(totals * (k + 1) / 7.0) for k in range(256)], dim=-1)


@pytest.mark.parametrize("name", ["docs", "docstrings"])
def test_batches_and_prompts_have_the_cells_shape_and_come_from_their_splits(name):
    workload, cell = CATALOG.workload(name), make_cell(batch_size=3, seq_len=50)
    batches = workload.training_batches(TOKENIZER, cell, 4, seed=1)
    assert [b["input_ids"].shape for b in batches] == [(3, 50)] * 4
    assert all(torch.equal(b["labels"], b["input_ids"]) for b in batches)
    assert workload.prompts(TOKENIZER, cell).shape == (3, 50)
    train = "\0".join(d.text for d in workload.splits.train)
    piece = bytes(batches[0]["input_ids"][0, 1:40].tolist()).decode(errors="ignore").partition("\0")[0]
    assert piece in train


@pytest.mark.parametrize("length", [16_384, 131_072])
def test_docs_fills_long_sequences_with_text_and_evaluates_each_document_in_one_window(length):
    workload, cell = CATALOG.workload("docs"), make_cell(batch_size=1, seq_len=length, quality_documents=3)
    [batch] = workload.training_batches(TOKENIZER, cell, 1, seed=1)
    assert batch["input_ids"].shape == workload.prompts(TOKENIZER, cell).shape == (1, length)
    assert batch["attention_mask"].all()
    assert (batch["labels"] >= 0).all()
    seen: list[int] = []
    workload.quality(lambda ids, mask: seen.extend(mask.sum(1).tolist()) or uniform(ids, mask), TOKENIZER, cell)
    assert len(seen) == 3  # no document of this text is longer


def test_the_seed_orders_the_training_data_and_nothing_else():
    workload, cell = CATALOG.workload("docs"), make_cell()
    one, same, other = (workload.training_batches(TOKENIZER, cell, 1, seed=s)[0]["input_ids"] for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_a_uniform_model_has_eight_bits_per_byte():
    quality = CATALOG.workload("docs").quality(uniform, TOKENIZER, make_cell(seq_len=33, quality_documents=5))
    assert quality.scores["bits_per_byte"] == pytest.approx(8.0, abs=1e-5)
    assert quality.per_sample["bits_per_byte"] == pytest.approx([8.0] * 5, abs=1e-5)
    assert len(set(quality.names)) == 5


def test_batching_and_padding_do_not_change_scores(monkeypatch):
    from effbench.plugin import text_workload

    cell = make_cell(seq_len=40, quality_documents=6)
    together = CATALOG.workload("docs").quality(peeking, TOKENIZER, cell)
    monkeypatch.setattr(text_workload, "_TOKENS_AT_ONCE", 1)
    alone = CATALOG.workload("docs").quality(peeking, TOKENIZER, cell)
    assert together.per_sample["bits_per_byte"] == pytest.approx(alone.per_sample["bits_per_byte"], rel=1e-5)
    weighted = sum(s * w for s, w in zip(alone.per_sample["bits_per_byte"], alone.weights, strict=True)) / sum(alone.weights)
    assert weighted == pytest.approx(alone.scores["bits_per_byte"])


class Prompted(TextWorkload):
    name = "prompted"

    def read(self):
        document = Document("d", "abcdef", prompt="123")
        return Splits([document], [document], [document])


def test_a_prompt_is_neither_learnt_nor_scored():
    workload = Prompted()
    batch = workload.training_batches(TOKENIZER, make_cell(seq_len=10, batch_size=1), 1, seed=0)[0]
    assert batch["input_ids"][0].tolist() == [0, *b"123abcdef"]
    assert batch["labels"][0].tolist() == [-100] * 4 + list(b"abcdef")

    def knows_letters_only(ids, mask):
        scores = torch.zeros(*ids.shape, 256)
        return scores.scatter(2, ids.roll(-1, 1)[..., None] * (ids.roll(-1, 1)[..., None] > 96), 100.0)

    quality = workload.quality(knows_letters_only, TOKENIZER, make_cell(seq_len=64))
    assert quality.scores["top1_accuracy"] == 1.0
    assert quality.scores["bits_per_byte"] == pytest.approx(0, abs=1e-6)
    assert quality.weights == [6.0]
    assert math.isfinite(quality.scores["bits_per_byte"])


def test_own_text_as_a_file_and_as_lines(tmp_path):
    plain = tmp_path / "mine.txt"
    plain.write_text("\n\n".join(" ".join(f"word{i}x{j}" for j in range(90)) for i in range(60)))
    parts = CATALOG.workload(f"text:{plain}").splits
    assert all(parts)
    assert not {d.text for d in parts.train} & {d.text for d in parts.test}
    lines = tmp_path / "mine.jsonl"
    lines.write_text("\n".join(json.dumps({"prompt": f"q{i}", "completion": f"answer {i}"}) for i in range(60)))
    workload = CATALOG.workload(f"text:{lines}")
    assert workload.splits.train[0].prompt.startswith("q")
    assert workload.label == "text:mine.jsonl"
    assert workload.data_hash() != CATALOG.workload(f"text:{plain}").data_hash()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("absent.txt", None, "no such file"),
        ("short.txt", "only one", "split; give more documents"),
        ("empty.txt", " \n", "the file is empty"),
        ("bad.jsonl", '{"text": "a"}\n{"text"', "line 2 is not JSON"),
        ("other.jsonl", '{"question": "a"}', "line 1: expected"),
    ],
)
def test_text_that_cannot_be_used_says_why(tmp_path, name, content, words):
    file = tmp_path / name
    if content is not None:
        file.write_text(content)
    with pytest.raises(InputError, match=words):
        CATALOG.workload(f"text:{file}").data_hash()


def test_an_unreadable_cache_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "folder", lambda: tmp_path / "deep")
    monkeypatch.setattr(texts, "unseen_docstrings", lambda: [Document(f"m:{i}", f"text {i}") for i in range(40)])
    first = CATALOG.workload("docstrings").splits
    [file] = (tmp_path / "deep").iterdir()
    file.write_text("[[{")
    assert CATALOG.workload("docstrings").splits == first
    assert json.loads(file.read_text())


def test_a_readable_cache_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "folder", lambda: tmp_path)
    assert cache.kept("x", b"a", lambda: [1]) == [1]
    assert cache.kept("x", b"a", lambda: [2]) == [1]
    assert cache.kept("x", b"b", lambda: [2]) == [2]


def test_a_cache_that_cannot_be_written_costs_time_and_one_warning(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(cache, "folder", lambda: tmp_path / "file")
    monkeypatch.setattr(texts, "unseen_docstrings", lambda: [Document(f"m:{i}", f"text {i}") for i in range(40)])
    assert all(CATALOG.workload("docstrings").splits)
    assert len(caplog.messages) == 1
    assert "is not written" in caplog.messages[0]


def test_epochs_have_different_orders_and_no_window_overlaps_another():
    class Small(TextWorkload):
        name = "small"

        def read(self):
            return Splits([Document(str(i), chr(65 + i) * 9) for i in range(8)], [Document("v", "v")], [Document("t", "t")])

    batches = Small().training_batches(TOKENIZER, make_cell(seq_len=10, batch_size=8), 3, seed=0)
    epochs = [[bytes(row.tolist()).decode() for row in batch["input_ids"]] for batch in batches]
    assert all(sorted(epoch) == ["\0" + chr(65 + i) * 9 for i in range(8)] for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert Small().prompts(TOKENIZER, make_cell(seq_len=3, batch_size=2)).tolist() == [[0, 116, 0], [116, 0, 116]]


def test_a_window_with_nothing_to_learn_is_left_out():
    """The mean loss over no label is not a number."""

    class LongPrompt(TextWorkload):
        name = "long-prompt"

        def read(self):
            return Splits(*([Document("d", "yes", prompt="why " * 30)] for _ in range(3)))

    cell = make_cell(seq_len=8, batch_size=1)
    batches = LongPrompt().training_batches(TOKENIZER, cell, 20, seed=0)
    assert all((batch["labels"][:, 1:] != -100).any() for batch in batches)
    assert LongPrompt().quality(uniform, TOKENIZER, cell).scores["bits_per_byte"] == pytest.approx(8.0, abs=1e-5)


def test_evaluation_batches_shrink_with_the_vocabulary():
    shapes = []

    def watched(ids, mask):
        shapes.append(ids.shape)
        return torch.zeros(*ids.shape, 256)

    cell = make_cell(seq_len=64, quality_documents=100)
    CATALOG.workload("docs").quality(watched, TOKENIZER, cell)
    assert max(b * n for b, n in shapes) <= 4096
    shapes.clear()
    cell = cell.model_copy(update={"facts": cell.facts.model_copy(update={"vocab": 2**18})})
    CATALOG.workload("docs").quality(watched, TOKENIZER, cell)
    assert max(b * n for b, n in shapes) <= 256


def test_passages_are_whole_paragraphs_of_up_to_2000_characters():
    document = Document("d", "\n\n".join("p" * size for size in (900, 900, 198, 10, 3000, 5)))
    passages = passages_of(document)
    assert [p.name for p in passages] == ["d#0", "d#1", "d#2", "d#3"]
    assert [len(p.text) for p in passages] == [1802, 210, 3000, 5]
    assert "\n\n".join(p.text for p in passages) == document.text


def test_own_texts_splits_share_no_prompt_and_no_paragraph(tmp_path):
    lines = tmp_path / "mine.jsonl"
    repeated = " ".join(f"licence{i}" for i in range(20))
    items = [{"prompt": f"question {i % 40}", "completion": f"answer {i}"} for i in range(80)]
    items += [{"text": f"{repeated}\n\nOwn text {i} with\u2028a separator of lines"} for i in range(60)]
    lines.write_text("\n".join(json.dumps(item, ensure_ascii=False) for item in items), encoding="utf-8")
    splits = CATALOG.workload(f"text:{lines}").splits
    prompts = [{d.prompt for d in part if d.prompt} for part in splits]
    assert all(prompts)
    assert not prompts[0] & prompts[1]
    assert not (prompts[0] | prompts[1]) & prompts[2]
    assert sum(len(part) for part in splits) == 140
    assert [any(repeated in d.text for d in part) for part in splits] == [False, False, True]
