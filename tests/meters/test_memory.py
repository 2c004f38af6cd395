"""Peaks of real allocations on the CPU."""

import pytest
import torch
from effbench_plugins.meters import memory
from effbench_plugins.meters.memory import Memory
from torch import nn

from effbench.plugin import Observation
from tests.records import make_cell

MB = 2**20


@pytest.fixture
def peak():
    """Peak that the meter reports for a phase in which so many megabytes are allocated, used and freed."""
    meter, model = Memory(), nn.Linear(2, 2)

    def measure(phase, megabytes, model=model):
        observation = Observation(make_cell(), phase, model=model)
        meter.begin(observation)
        if megabytes:
            torch.ones(megabytes * MB // 4)
        found = meter.end(observation)
        assert found.keys() == {f"{phase}.peak_memory_bytes", f"{phase}.peak_memory_all_ranks_bytes"}
        return found[f"{phase}.peak_memory_bytes"].median

    return measure


def test_a_peak_belongs_to_its_phase(peak):
    before = peak("train", 0)
    during = peak("convert", 64)
    after = peak("infer", 0)
    assert during - before >= 60 * MB
    assert after - before <= 4 * MB


def test_memory_that_stays_is_not_counted_again(peak):
    kept = torch.ones(64 * MB // 4)
    assert peak("infer", 0) <= 4 * MB
    assert kept.sum() > 0


def test_the_live_model_counts_even_though_it_was_there_before(peak):
    model = nn.Linear(2048, 2048, bias=False)
    assert 16 * MB <= peak("infer", 0, model) <= 20 * MB


def test_loading_and_applying_have_no_peak_of_their_own():
    meter, observation = Memory(), Observation(make_cell(), "load")
    meter.begin(observation)
    assert meter.end(observation) == {}


def test_a_system_that_does_not_tell_leaves_it_absent(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "Path", lambda _: tmp_path / "missing")
    meter, observation = Memory(), Observation(make_cell(), "train", model=nn.Linear(2, 2))
    meter.begin(observation)
    assert meter.end(observation) == {}


def test_across_ranks_the_largest_and_the_sum():
    assert {m.name: m.across_ranks for m in Memory.metrics} == {
        f"{phase}.peak_memory{ranks}_bytes": how
        for phase in ("train", "convert", "infer")
        for ranks, how in (("", "max"), ("_all_ranks", "sum"))
    }
