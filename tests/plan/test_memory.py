"""What cannot fit is skipped when planned; nothing is measured here."""

import json
import subprocess
import sys

import pytest

from effbench.plan.estimate import estimate
from effbench.plan.memory import available_bytes, predict, untouched_bytes
from effbench.plan.plan import plan
from effbench.plan.suite import Suite
from effbench.store import machine
from tests.end_to_end.conftest import TINY
from tests.records import make_cell

GIB = 2**30

EXTRA = '''
from typing import ClassVar
from effbench.plugin import Technique, hookimpl


class Hoard(Technique):
    """Holds as much as it is told to."""

    name: ClassVar = "hoard"
    family: ClassVar = "other"
    gib: float
    phase: str = "train"

    def memory(self, cell, phase):
        return self.gib * 2**30 if phase == self.phase else 0.0


class Silent(Technique):
    """Does not say what it takes."""

    name: ClassVar = "silent"
    family: ClassVar = "other"


class Spread(Technique):
    """Uses ranks, each with a whole copy."""

    name: ClassVar = "spread"
    family: ClassVar = "parallelism"
    dimension: ClassVar = "dp"

    def memory(self, cell, phase):
        return 0.0


@hookimpl
def register_techniques(register):
    for technique in (Hoard, Silent, Spread):
        register(technique)
'''


@pytest.fixture
def make(tmp_path, catalog, monkeypatch):
    monkeypatch.setattr("effbench.plan.memory.memory_bytes", lambda: 24.0 * GIB)
    file = tmp_path / "tiny.json"
    file.write_text(json.dumps(TINY | {"max_position_embeddings": 2**20}))
    content = {"name": "s", "baseline": "full", "models": [f"config:{file}"], "workloads": ["docs"]}

    def planned(stack=(), **changes):
        suite = Suite.model_validate(content | {"stacks": {"full": [], "x": list(stack)}} | changes)
        return plan(suite, catalog, ["x"])

    return planned


def reasons(planned):
    return {skip.cell.stack: skip.reason for skip in planned.skips}


def of_x(planned):
    [cell] = [cell for cell in planned.cells if cell.stack == "x"]
    return planned.phase_skips.get(cell.id, {})


def test_a_cell_that_cannot_fit_is_skipped_and_the_next_smaller_one_measured(make):
    planned = make(axes={"seq_len": [128, 2**20], "batch_size": [64]}, phases=["train"])
    assert [(cell.stack, cell.seq_len) for cell in planned.cells] == [("full", 128), ("x", 128)]
    [reason] = {skip.reason for skip in planned.skips}
    assert reason.startswith("no train: predicted to need ")
    assert reason.endswith(" GiB, the limit is 24 GiB")


def test_a_phase_that_alone_does_not_fit_is_skipped_and_the_other_measured(make):
    hoard = {"technique": "hoard", "gib": 34}
    assert of_x(make([hoard])) == {"train": "predicted to need 34 GiB, the limit is 24 GiB"}
    assert of_x(make([hoard | {"phase": "infer"}])) == {"infer": "predicted to need 34 GiB, the limit is 24 GiB"}
    both = make([hoard, hoard | {"phase": "infer"}])
    expected = "predicted to need 34 GiB, the limit is 24 GiB"
    assert reasons(both) == {"x": f"no train: {expected}; no infer: {expected}"}


def test_what_techniques_add_is_summed_and_a_negative_share_saves(make):
    half = {"technique": "hoard", "gib": 13}
    assert of_x(make([half])) == {}
    assert of_x(make([half, half])) == {"train": "predicted to need 26 GiB, the limit is 24 GiB"}
    assert of_x(make([half, half, {"technique": "hoard", "gib": -3}])) == {}


def test_a_technique_that_does_not_say_is_not_predicted(make):
    large = {"axes": {"seq_len": [2**20], "batch_size": [64]}}
    assert set(reasons(make(["silent"], **large))) == {"full"}
    assert of_x(make([{"technique": "hoard", "gib": 34}, "silent"])) == {}


def test_the_suites_limit_is_believed_below_and_above_the_machines_memory(make):
    hoard = {"technique": "hoard", "gib": 20}
    assert of_x(make([hoard], limits={"memory_gb": 16})) == {"train": "predicted to need 20 GiB, the limit is 16 GiB"}
    assert of_x(make([hoard | {"gib": 34}], limits={"memory_gb": 64})) == {}


def test_ranks_on_a_cpu_share_its_memory_and_not_the_weights(make):
    axes = {"world_size": [1, 2], "batch_size": [2]}
    planned = make(["spread", {"technique": "hoard", "gib": 20}], axes=axes)
    assert {cell.world_size: planned.phase_skips.get(cell.id, {}) for cell in planned.cells if cell.stack == "x"} == {
        1: {},
        2: {"train": "predicted to need 20 GiB, the limit is 12 GiB"},
    }
    one, two = (make_cell(batch_size=64, world_size=n, data_ranks=n) for n in (1, 2))
    weights = 4 * one.facts.approximate_parameters * 4
    assert untouched_bytes(two, "train") - weights == (untouched_bytes(one, "train") - weights) / 2


def test_on_cuda_the_smallest_gpu_counts_and_no_limit_of_the_hosts(monkeypatch):
    monkeypatch.setattr(machine, "gpus", lambda: ("NVIDIA A, 81559 MiB", "NVIDIA B, 24564 MiB"))
    cell = make_cell(device="cuda", world_size=2, data_ranks=2)
    assert available_bytes(cell, 1.0) == 24564 * 2**20
    monkeypatch.setattr(machine, "gpus", lambda: ())
    assert predict(cell, [], ["train"], 1.0).reasons() == {}


def test_a_gpu_that_is_too_small_skips_the_cell(make, monkeypatch):
    monkeypatch.setattr(machine, "gpus", lambda: ("NVIDIA A, 8192 MiB",))
    planned = make([{"technique": "hoard", "gib": 10}], device="cuda")
    assert of_x(planned) == {"train": "predicted to need 10 GiB, the limit is 8 GiB"}


def test_a_large_vocabulary_counts_in_training_and_long_prompts_in_the_cache():
    small, large = (
        make_cell(facts=make_cell().facts.model_copy(update={"vocab": vocab, "context": 65536}), seq_len=32768, batch_size=1)
        for vocab in (256, 128_256)
    )
    embeddings = 128_000 * small.facts.hidden * 4
    assert untouched_bytes(large, "train") - untouched_bytes(small, "train") - 4 * embeddings == 3 * 32768 * 128_000 * 4
    assert untouched_bytes(large, "infer") - untouched_bytes(small, "infer") == embeddings
    fewer = small.model_copy(update={"facts": small.facts.model_copy(update={"kv_heads": 1})})
    assert untouched_bytes(fewer, "infer") < untouched_bytes(small, "infer")


@pytest.mark.parametrize("name", ["causal-attention:128x128", "two-sided-attention:128x128"])
def test_the_attention_call_alone_needs_its_inputs_its_output_and_their_gradients(catalog, name):
    facts = catalog.model(name).facts()
    cell = make_cell(facts=facts, seq_len=2**17, batch_size=1, dtype="bfloat16", device="cuda")
    one = 2**17 * 128 * 128 * 2
    assert untouched_bytes(cell, "train") == 8 * one < 80 * GIB, "it fits on a GPU of 80 GB"
    assert untouched_bytes(cell, "infer") == (6 if facts.causal else 4) * one


def test_figures_beyond_a_thousand_are_written_out(make):
    assert of_x(make([{"technique": "hoard", "gib": 1234}])) == {"train": "predicted to need 1234 GiB, the limit is 24 GiB"}


def test_the_estimate_is_the_largest_prediction_of_what_is_measured(make):
    planned = make([{"technique": "hoard", "gib": 20}])
    assert 20 < estimate(planned, 1, {}).memory_gb < 20.1
    assert estimate(make([{"technique": "hoard", "gib": 34}]), 1, {}).memory_gb < 1


def test_eager_attention_grows_with_the_square_and_by_layer_in_training(catalog):
    eager, sdpa = (catalog.technique("exact_attention", {"kernel": kernel}) for kernel in ("eager", "sdpa"))
    short, long = (make_cell(seq_len=n) for n in (1024, 2048))
    deeper = short.model_copy(update={"facts": short.facts.model_copy(update={"layers": 20})})
    for phase in ("train", "infer"):
        assert eager.memory(long, phase) == 4 * eager.memory(short, phase) > 0
        assert sdpa.memory(long, phase) == 0
    assert eager.memory(deeper, "train") > 5 * eager.memory(short, "train")
    assert eager.memory(deeper, "infer") == eager.memory(short, "infer")


def test_predicting_imports_no_torch():
    code = "import sys, effbench.plan.plan, effbench.launch.out_of_memory; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
