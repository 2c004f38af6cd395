"""What must hold of every meter's figures, whatever was measured."""

import json
import math
from dataclasses import replace

import pytest
from effbench_plugins.meters.latency import Latency
from effbench_plugins.meters.throughput import Throughput

from effbench.plugin import Observation
from effbench.plugin.discovery import discover
from tests.end_to_end.conftest import TINY
from tests.records import FACTS, make_cell
from tests.worker.test_trial import Clock, Counted, ticking


@pytest.fixture(scope="module")
def catalog():
    return discover()


@pytest.fixture
def run(tmp_path, catalog):
    """A whole trial by a clock that only its technique moves: 1 s a step, 4 s a prefill, 0.5 s a decode step."""
    from effbench.worker import trial

    file = tmp_path / "tiny.json"
    file.write_text(json.dumps(TINY))

    def go(**changes):
        clock = Clock()
        cell = make_cell(facts=FACTS, **({"batch_size": 3, "seq_len": 20, "steps": 8, "new_tokens": 5} | changes))
        meters = [catalog.meters.get(name)() for name in catalog.meters.names()]
        source = catalog.model(f"config:{file}")
        request = trial.TrialRequest(cell, 1, [ticking(clock)], source, Counted(clock), meters, {})
        return trial.run(request, lambda phase: None, clock)

    return go


def end(meter, cell, phase="train", **samples):
    return meter.end(Observation(cell, phase, samples=samples, stopped=dict.fromkeys(samples, "steps")))


SAMPLES = [3.0, 1.0, 1.1, 0.9, 1.0, 1.05, 0.95, 1.0]


def test_throughput_times_the_mean_time_is_the_volume_of_the_global_batch():
    mean = sum(SAMPLES[1:]) / 7
    for world_size in (1, 4):  # the ranks share the batch out: it does not grow with them
        cell = make_cell(batch_size=8, seq_len=64, world_size=world_size, new_tokens=17)
        trained = end(Throughput(), cell, step=SAMPLES)
        used = end(Throughput(), cell, "infer", prefill=SAMPLES, decode=SAMPLES)
        assert trained["train.tokens_per_s"].median * mean == pytest.approx(8 * 64)
        assert used["infer.prefill_tokens_per_s"].median * mean == pytest.approx(8 * 64)
        assert used["infer.decode_tokens_per_s"].median * mean == pytest.approx(8 * 16)


def test_a_decode_loop_is_as_many_tokens_as_it_has_steps():
    cell = make_cell(new_tokens=17)
    found = end(Latency(), cell, "infer", decode=[1.6] * 8)["infer.decode_token_s"]
    assert found.median * 16 == pytest.approx(1.6)


def test_the_clock_of_training_runs_in_steps_alone_and_that_of_decoding_without_prefill(run):
    outcome = run()
    assert outcome.status == "ok", outcome.error
    metrics = {name: metric["median"] for name, metric in outcome.metrics.items()}
    assert metrics["train.step_s"] == 1.0  # evaluation, data and the meters' own passes took thousands of its seconds
    assert sum(outcome.samples["samples"]["step"]) == 8.0
    assert metrics["infer.prefill_s"] == 4.0
    assert metrics["infer.decode_token_s"] == 0.5
    assert metrics["infer.end_to_end_s"] == 4.0 + 4 * 0.5


def test_what_cannot_be_measured_is_missing_and_never_zero(run, catalog):
    outcome = run()
    definitions = catalog.metrics()
    for name, metric in outcome.metrics.items():
        assert metric["unit"] == definitions[name].unit
        assert math.isfinite(metric["median"])
        # On a clock that stands still, setting up takes no time at all; a model may be loaded from nothing.
        assert metric["median"] > 0 or name in ("load.duration_s", "apply.duration_s")
    # One rank does not communicate, and nothing was compiled.
    assert not [name for name in outcome.metrics if "communication" in name or "compile" in name]


@pytest.mark.parametrize("phase", ["load", "apply", "train", "convert", "infer"])
def test_a_phase_that_showed_nothing_gives_nothing(catalog, phase, monkeypatch, tmp_path):
    from effbench_plugins.meters import energy

    monkeypatch.setattr(energy, "_POWERCAP", tmp_path)
    observation = Observation(make_cell(), phase)
    for meter in (catalog.meters.get(name)() for name in catalog.meters.names()):
        meter.begin(observation)
        assert meter.end(replace(observation)) == {}
        assert meter.probe(replace(observation)) == {}


def test_every_metric_is_defined_once_and_in_one_line(catalog):
    names = [metric.name for meter in catalog.meters for metric in meter.metrics]
    assert len(names) == len(set(names))
    for metric in catalog.metrics().values():
        assert metric.definition.endswith(".")
        assert "\n" not in metric.definition
