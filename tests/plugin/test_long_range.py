"""The long-range workloads: their rules, their batches, and what a constant and an all-knowing model score."""

import re
import statistics
from collections import Counter
from itertools import chain

import numpy as np
import pytest
import torch

from effbench.plugin import InputError
from effbench.plugin.answer_workload import MASK, PADDING, SEPARATOR
from effbench.plugin.discovery import discover
from effbench.plugin.transformers_source import ByteTokenizer
from effbench.plugin.workload import weighted_mean
from effbench.reference import texts
from effbench.reference.texts import Document
from effbench.store import cache
from tests.records import FACTS, make_cell

CATALOG = discover()
TOKENIZER = ByteTokenizer()
ENCODER = FACTS.model_copy(update={"model_type": "eurobert", "causal": False})
SMALL = "listops:20-60,train=400,validation=50,test=200"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "folder", lambda: tmp_path)


def library():
    """Modules of each kind, enough that every split has some; each file's text is its own."""
    names = {"http": "get", "asyncio": "await", "inspect": "frame", "json": "list"}
    for module, word in names.items():
        for number in range(40):
            lines = [f"{word}{number}x{line} = {module}.call({line})" for line in range(30)]
            yield Document(f"{module}.m{number}", "\n\n".join(lines))


@pytest.fixture
def workload(request, monkeypatch):
    monkeypatch.setattr(texts, "library_source", lambda: list(library()))
    return CATALOG.workload(request.param)


every_workload = pytest.mark.parametrize("workload", [SMALL, "recall:3@20", "byte_class:64"], indirect=True)


def evaluate(expression):
    """Recursive descent, one character at a time; the workload's own code evaluates whole levels of trees."""
    operations = {"m": min, "M": max, "d": lambda a: int(statistics.median(a)), "s": lambda a: sum(a) % 10}
    characters = iter(expression)

    def node(character, depth):
        if character.isdigit():
            return int(character)
        assert depth < 10
        arguments = list(iter(lambda: next_node(depth + 1), None))
        assert 2 <= len(arguments) <= 10
        return operations[character](arguments)

    def next_node(depth):
        character = next(characters)
        return None if character == "]" else node(character, depth)

    value = node(next(characters), 1)
    assert next(characters, None) is None
    return value


def test_listops_answers_lengths_and_splits():
    parts = CATALOG.workload(SMALL).samples
    assert [len(part) for part in parts] == [400, 50, 200]
    texts_seen = []
    for sample in chain(*parts):
        *expression, separator, answer = sample.tokens
        text = bytes(expression).decode()
        assert separator == SEPARATOR
        assert evaluate(text) == int(chr(answer))
        assert 20 < sum(map(str.isdigit, text)) + 2 * sum(map(str.isalpha, text)) < 60
        assert len(text) == sum(map(str.isdigit, text)) + 2 * text.count("]")
        texts_seen.append(text)
    assert len(set(texts_seen)) == len(texts_seen)


def test_listops_at_long_range_arenas_lengths():
    workload = CATALOG.workload("listops:500-2000,train=1000,validation=1,test=1")
    samples = workload.samples.train
    assert all(500 < len(s.tokens) - 2 < 2000 for s in samples)
    assert max(len(s.tokens) for s in samples) > 1500, "the tail is there"
    answers = Counter(s.tokens[-1] for s in samples)
    assert 0.13 < max(answers.values()) / len(samples) < 0.22
    assert workload.length == 2001


def test_a_node_is_a_digit_three_times_out_of_four():
    """Of short trees nothing of note is cut off, so the shares of the rule are the shares that come out."""
    from effbench_plugins.long_range.listops import _Forest

    forest = _Forest(np.random.default_rng(0), 10**6)
    arities = np.concatenate(forest.arity[:9])
    assert (arities == 0).mean() == pytest.approx(0.75, abs=0.01)
    assert np.bincount(arities[arities > 0])[2:] / (arities > 0).sum() == pytest.approx([1 / 9] * 9, abs=0.01)
    assert not forest.arity[9].any()


def test_impossible_lengths_are_given_up_in_one_line():
    with pytest.raises(InputError, match="allow more lengths"):
        _ = CATALOG.workload("listops:1-3").samples


@pytest.mark.parametrize(
    "reference",
    [
        *("listops:", "listops:5", "listops:9-10", "listops:20-60,trains=5", "listops:20-60,train=0", "listops:20-60,train"),
        *("recall:", "recall:8", "recall:1@5", "recall:65@5", "recall:8@-1", "byte_class:", "byte_class:x", "byte_class:9"),
    ],
)
def test_an_argument_that_is_none_says_how_it_is_written(reference):
    with pytest.raises(InputError, match=f"workload {reference}.*: write ") as caught:
        CATALOG.workload(reference)
    assert "\n" not in str(caught.value)


def test_recall_asks_each_key_once_for_the_value_it_stood_before():
    workload = CATALOG.workload("recall:5@30")
    seen = set()
    orders = set()
    for sample in chain(*workload.samples):
        pairs, filler, queries = sample.tokens[:10], sample.tokens[10:40], sample.tokens[40:]
        table = dict(zip(pairs[::2], pairs[1::2], strict=True))
        assert len(table) == 5
        assert dict(zip(queries[::2], queries[1::2], strict=True)) == table
        assert set(queries[::2]) == table.keys()
        assert not set(filler) & (table.keys() | set(table.values()))
        assert sample.answers == (41, 43, 45, 47, 49)
        seen.add(sample.tokens)
        orders.add(tuple(pairs[::2].index(key) for key in queries[::2]))
    assert len(seen) == sum(map(len, workload.samples))
    assert len(orders) == 120
    assert workload.length == 50


@pytest.mark.parametrize("workload", ["byte_class:64"], indirect=True)
def test_byte_class_splits_modules_and_strikes_their_names_out(workload):
    from effbench_plugins.long_range.byte_class import KINDS

    modules = [{sample.name.partition("#")[0] for sample in part} for part in workload.samples]
    assert all(modules)
    assert not modules[0] & modules[1]
    assert not (modules[0] | modules[1]) & modules[2]
    words = {"get": "internet", "await": "concurrency", "frame": "language", "list": "data"}
    for part in workload.samples:
        kinds = Counter(sample.tokens[-1] for sample in part)
        assert len(kinds) == 4
        assert len(set(kinds.values())) == 1, "as many of one kind as of another"
        for sample in part:
            text = sample.tokens[:-2].decode()
            assert len(text) == 64
            assert not re.search(r"\b(http|asyncio|inspect|json)\b", text)
            [kind] = {kind for word, kind in words.items() if re.search(rf"\b{word}\d", text)}
            assert list(KINDS).index(kind) == sample.tokens[-1] - 3
    per_module = Counter(sample.name.partition("#")[0] for sample in workload.samples.test)
    assert max(per_module.values()) <= 8


def test_names_of_modules_are_struck_out_beside_underscores_but_not_inside_words():
    from effbench_plugins.long_range.byte_class import _MODULE_NAME

    struck = _MODULE_NAME.sub("_", "import asyncio, _asyncio; ASYNCIO_DEBUG last broadcast urllib.request json5")
    assert struck == "import _, __; __DEBUG last broadcast _.request json5"


@pytest.mark.slow
def test_byte_class_on_the_library_of_this_python(monkeypatch):
    documents = [d for d in texts.library_source() if d.name.partition(".")[0] in {"ast", "email", "http", "json", "queue"}]
    documents += [d for d in texts.library_source() if d.name.startswith(("xml.", "asyncio.", "importlib."))]
    monkeypatch.setattr(texts, "library_source", lambda: documents)
    parts = CATALOG.workload("byte_class:128").samples
    assert all(len({s.tokens[-1] for s in part}) == 4 for part in (parts.train, parts.test))
    assert not any(PADDING in s.tokens or MASK in s.tokens for part in parts for s in part)


@every_workload
def test_batches_have_the_cells_shape_and_labels_only_where_answers_stand(workload):
    cell = make_cell(batch_size=3, seq_len=100)
    batch = workload.training_batches(TOKENIZER, cell, 2, seed=1)[1]
    known = {sample.tokens: sample for sample in workload.samples.train}
    assert {name: tensor.shape for name, tensor in batch.items()} == dict.fromkeys(
        ("input_ids", "attention_mask", "labels"), (3, 100)
    )
    for ids, mask, labels in zip(*batch.values(), strict=True):
        length = int(mask.sum())
        sample = known[bytes(ids[:length].tolist())]
        assert not ids[length:].any()
        assert mask.tolist() == [1] * length + [0] * (100 - length)
        assert [place for place, label in enumerate(labels) if label != -100] == list(sample.answers)
        assert all(labels[place] == sample.tokens[place] for place in sample.answers)


@every_workload
def test_a_bidirectional_model_sees_a_mask_where_the_answer_stands(workload):
    causal = workload.training_batches(TOKENIZER, make_cell(seq_len=100), 1, seed=1)[0]
    masked = workload.training_batches(TOKENIZER, make_cell(seq_len=100, facts=ENCODER), 1, seed=1)[0]
    assert torch.equal(causal["labels"], masked["labels"])
    answers = causal["labels"] != -100
    assert (masked["input_ids"][answers] == MASK).all()
    assert torch.equal(causal["input_ids"][~answers], masked["input_ids"][~answers])


@every_workload
def test_the_seed_orders_the_training_data_and_the_samples_stay(workload):
    one, same, other = (workload.training_batches(TOKENIZER, make_cell(seq_len=100), 1, s)[0]["input_ids"] for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    again = CATALOG.workload(workload.label)
    assert again.samples == workload.samples
    assert again.data_hash() == workload.data_hash()


def test_another_argument_is_other_data():
    hashes = {CATALOG.workload(w).data_hash() for w in ("recall:3@20", "recall:3@21", SMALL, "listops:20-61,train=400")}
    assert len(hashes) == 4


@every_workload
@pytest.mark.parametrize("facts", [FACTS, ENCODER], ids=["causal", "bidirectional"])
def test_a_model_that_knows_the_answers_scores_1_and_one_that_does_not_0(workload, facts):
    test = sorted(workload.samples.test[:7], key=lambda sample: -len(sample.tokens))

    def knows(ids, mask, shift=0):
        scores = torch.zeros(*ids.shape, 256)
        for row in range(len(ids)):
            sample = next(s for s in test if matches(s, ids[row], mask[row]))
            for place in sample.answers:
                scores[row, place - facts.causal, (sample.tokens[place] + shift) % 256] = 1.0
        return scores

    def matches(sample, ids, mask):
        seen = bytes(ids[: int(mask.sum())].tolist())
        hidden = bytes(MASK if place in sample.answers else token for place, token in enumerate(sample.tokens))
        return seen in (sample.tokens, hidden)

    cell = make_cell(seq_len=100, facts=facts, quality_documents=7)
    assert workload.quality(knows, TOKENIZER, cell).scores == {"accuracy": 1.0}
    assert workload.quality(lambda ids, mask: knows(ids, mask, 1), TOKENIZER, cell).scores == {"accuracy": 0.0}


@every_workload
def test_the_best_constant_prediction_scores_what_is_called_chance(workload):
    counts = Counter(s.tokens[place] for s in workload.samples.train for place in s.answers)
    best = workload.constant
    assert counts[best] == max(counts.values())
    cell = make_cell(seq_len=100, quality_documents=40)
    quality = workload.quality(lambda ids, mask: torch.eye(256)[best].expand(*ids.shape, -1), TOKENIZER, cell)
    assert quality.per_sample == quality.chance
    asked = [s.tokens[place] for s in workload.samples.test[:40] for place in s.answers]
    assert quality.scores["accuracy"] == pytest.approx(asked.count(best) / len(asked))
    assert quality.scores["accuracy"] == pytest.approx(weighted_mean(quality.chance["accuracy"], quality.weights))


@every_workload
def test_validation_is_other_samples(workload):
    cell = make_cell(seq_len=100, quality_documents=5)
    names = [
        workload.quality(lambda i, m: torch.zeros(*i.shape, 256), TOKENIZER, cell, s).names for s in ("validation", "test")
    ]
    assert not set(names[0]) & set(names[1])


@every_workload
def test_prompts_are_full_and_of_the_test_split(workload):
    prompts = workload.prompts(TOKENIZER, make_cell(batch_size=2, seq_len=90))
    assert prompts.shape == (2, 90)
    first = workload.samples.test[0].tokens
    assert bytes(prompts.flatten()[: len(first)].tolist()) == first


@every_workload
def test_a_sequence_that_does_not_fit_is_known_when_planning(workload):
    assert workload.unsupported(make_cell(seq_len=workload.length)) is None
    assert f"seq_len of at least {workload.length}" in workload.unsupported(make_cell(seq_len=workload.length - 1))
    t5 = FACTS.model_copy(update={"model_type": "t5", "causal": False})
    assert "t5 is both" in workload.unsupported(make_cell(seq_len=100, facts=t5))
    narrow = FACTS.model_copy(update={"vocab": 100})
    assert "vocabulary" in workload.unsupported(make_cell(seq_len=100, facts=narrow))
