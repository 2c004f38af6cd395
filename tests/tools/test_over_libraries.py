import re
from pathlib import Path

import by_library
import over_libraries
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    folder = tmp_path_factory.mktemp("tiny")
    config = LlamaConfig(vocab_size=256, num_hidden_layers=2, max_position_embeddings=64, tie_word_embeddings=True, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def run(monkeypatch, model, *stacks):
    shape = ["--seq-len", "16", "--batch-size", "2", "--new-tokens", "3", "--rounds", "2", "--calls", "1"]
    chosen = ["--technique", *stacks] if stacks else []
    monkeypatch.setattr("sys.argv", ["over_libraries.py", "--model", str(model), *shape, *chosen])
    over_libraries.main()


def test_both_sides_of_every_stack_compute_the_same_and_each_phase_has_a_row(model, monkeypatch, capsys):
    differences, compute = {}, over_libraries.difference_of_logits

    def seen(sides, ids):
        differences[len(differences)] = compute(sides, ids)
        return differences[len(differences) - 1]

    monkeypatch.setattr(over_libraries, "difference_of_logits", seen)
    run(monkeypatch, model)
    head, *rows = capsys.readouterr().out.splitlines()
    assert "95 % of 2 pairs" in head
    found = [re.match(r"(\S+) +(train|prefill|decode) +(\d\.\d{3}) +\[(\S+), (\S+)\]", row).groups() for row in rows]
    trained = [name for name, recipe in by_library.RECIPES.items() if recipe.adapt]
    expected = {(name, phase) for name in over_libraries.STACKS for phase in ("prefill", "decode")}
    assert {(name, phase) for name, phase, *_ in found} == expected | {(name, "train") for name in trained}
    assert all(float(low) <= float(high) for *_, low, high in found)
    assert list(differences.values()) == [pytest.approx(0, abs=1e-6)] * len(over_libraries.STACKS)


def test_times_of_unlike_work_are_not_shown(model, monkeypatch):
    unlike = {**by_library.RECIPES, "int4": by_library.RECIPES["int8-dynamic"]}
    monkeypatch.setattr(over_libraries, "RECIPES", unlike)
    with pytest.raises(SystemExit, match="int4: the two sides' logits differ by"):
        run(monkeypatch, model, "int4")


def test_ratios_are_ours_over_the_librarys_of_each_duration():
    work = over_libraries.Work(Path(), seq_len=1, batch_size=1, new_tokens=1, rounds=3, calls=2)
    calls = []

    def call(side):
        calls.append(side)
        return [3.0, 8.0] if side == "ours" else [2.0, 2.0]

    assert over_libraries.ratios(call, ("ours", "library"), work) == [[1.5] * 3, [4.0] * 3]
    timed = calls[2 * over_libraries.WARMUP :]
    assert timed.count("ours") == timed.count("library") == 6
    assert {tuple(timed[place : place + 2]) for place in range(0, 12, 2)} == {("ours", "library"), ("library", "ours")}
