"""Rules of planning that need models and workloads of their own."""

import json
import time

import pytest

from effbench.plan.estimate import estimate
from effbench.plan.plan import plan
from effbench.plan.suite import Suite
from effbench.plugin import InputError

EXTRA = '''
from typing import ClassVar
from effbench.plugin import ModelFacts, ModelSource, Technique, Workload, hookimpl


class FakeModel(ModelSource):
    """A model of facts alone."""

    name: ClassVar = "fake-model"

    @property
    def label(self):
        return self.name

    def facts(self):
        shape = {"layers": 2, "hidden": 32, "heads": 4, "kv_heads": 4, "intermediate": 64, "vocab": 256, "context": 4096}
        return ModelFacts(model_type="fake", causal=True, **shape)

    def weights_hash(self): ...
    def load(self, request, seed): ...
    def tokenizer(self): ...


class TrainOnly(Workload):
    """Only trains."""

    name: ClassVar = "train-only"
    phases: ClassVar = ("train",)

    def data_hash(self): ...
    def training_batches(self, tokenizer, cell, count, seed): ...
    def prompts(self, tokenizer, cell): ...
    def quality(self, logits, tokenizer, cell, split): ...


class Level(Technique):
    """Has an option without a default."""

    name: ClassVar = "level"
    family: ClassVar = "other"
    level: int


class Untrainable(Technique):
    """Cannot train."""

    name: ClassVar = "untrainable"
    family: ClassVar = "other"

    def unsupported_phase(self, cell, phase):
        return "no gradients" if phase == "train" else None


class NeedsTorchao(Technique):
    """Requires a distribution by another spelling."""

    name: ClassVar = "needs"
    family: ClassVar = "other"
    requires: ClassVar = ("TorchAO",)


@hookimpl
def register_techniques(register):
    register(Level)
    register(Untrainable)
    register(NeedsTorchao)


@hookimpl
def register_models(register):
    register(FakeModel)


@hookimpl
def register_workloads(register):
    register(TrainOnly)
'''


def suite(stacks=None, **changes):
    content = {"name": "s", "baseline": "full", "models": ["fake-model"], "workloads": ["docs"]}
    return Suite.model_validate(content | {"stacks": {"full": []} | (stacks or {})} | changes)


def test_an_axis_may_give_an_option_that_has_no_default(catalog):
    planned = plan(suite({"x": ["level"]}, axes={"level.level": [1, 2]}), catalog)
    assert [c.techniques for c in planned.cells if c.stack == "x"] == [(("level", {"level": n}),) for n in (1, 2)]
    with pytest.raises(InputError, match="technique 'level': option 'level' is required"):
        plan(suite({"x": ["level"]}), catalog)


def test_a_wrong_value_of_an_axis_is_refused_wherever_it_stands(catalog):
    with pytest.raises(InputError, match="technique 'level': option level = 'high'"):
        plan(suite({"x": ["level"]}, axes={"level.level": [1, "high"]}), catalog)


def test_a_cell_of_which_nothing_is_left_is_skipped(catalog):
    planned = plan(suite({"x": ["untrainable"]}, workloads=["train-only"]), catalog)
    assert [cell.stack for cell in planned.cells] == ["full"]
    assert planned.phase_skips[planned.cells[0].id] == {"infer": "workload train-only has no infer phase"}
    [skip] = planned.skips
    assert skip.reason == "no train: no gradients; no infer: workload train-only has no infer phase"


def test_two_references_of_one_label_are_named(catalog):
    with pytest.raises(InputError, match="models fake-model:a and fake-model:b would both be called 'fake-model'"):
        plan(suite(models=["fake-model:a", "fake-model:b"]), catalog)


def test_a_missing_library_of_an_extra_names_the_extra(catalog, monkeypatch):
    from importlib import metadata

    real = metadata.version

    def version(name):
        if name == "TorchAO":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    [skip] = plan(suite({"x": ["needs"]}), catalog).skips
    assert skip.reason == "needs TorchAO: pip install 'effbench[quantization]'"


def test_ten_thousand_cells_are_planned_in_seconds(catalog):
    axes = {"seq_len": list(range(1, 51)), "batch_size": list(range(1, 51)), "level.level": [1, 2, 3]}
    start = time.monotonic()
    planned = plan(suite({"x": ["level"]}, axes=axes, inference={"new_tokens": 2}), catalog)
    assert len(planned.cells) == 10_000
    assert time.monotonic() - start < 5  # 0.2 s when nothing else runs


def test_the_estimate_of_each_cell_adds_up(catalog):
    planned = plan(suite(axes={"seq_len": [16, 32]}), catalog)
    guess = estimate(planned, 2, {planned.cells[0].id: 30.0})
    assert guess.seconds[planned.cells[0].id] == 30
    assert guess.minutes == pytest.approx(2 * sum(guess.seconds.values()) / 60)


def test_an_allocator_that_the_system_does_not_have_is_refused(catalog, monkeypatch):
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.36"))
    [cell] = plan(suite(allocator="keep"), catalog).cells
    assert cell.allocator == "keep"
    monkeypatch.setattr("platform.libc_ver", lambda: ("", ""))
    assert plan(suite(), catalog).cells
    with pytest.raises(InputError, match=r'allocator = "keep" is a setting of glibc.*use "default"$'):
        plan(suite(allocator="keep"), catalog)


def test_a_workload_says_which_cells_it_does_not_have(catalog):
    planned = plan(suite(axes={"seq_len": [40, 48]}, models=["tiny-encoder"], workloads=["recall:4@32"]), catalog)
    assert [cell.seq_len for cell in planned.cells] == [48]
    [skip] = planned.skips
    assert skip.reason == "workload recall:4@32 needs a seq_len of at least 48, not 40"


def test_new_tokens_need_room_only_where_there_are_any(catalog, tmp_path):
    shape = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 256,
        "max_position_embeddings": 64,
    }
    for kind in ("bert", "llama"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "config.json").write_text(json.dumps(shape | {"model_type": kind}))
    models = [f"path:{tmp_path / kind}" for kind in ("bert", "llama")]
    planned = plan(suite(axes={"seq_len": [64]}, models=models, workloads=["docs"]), catalog)
    bert, llama = planned.cells
    assert bert.id not in planned.phase_skips
    assert "infer" in planned.phase_skips[llama.id]
    assert (bert.decode_steps, llama.decode_steps) == (0, llama.new_tokens - 1)
