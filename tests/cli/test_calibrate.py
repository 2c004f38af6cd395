"""The command end to end, with the fewest rounds; its cache folder is the test's."""

import json
import math
import os

import pytest

from effbench.board.power import smallest_slowdown
from effbench.launch import calibrate
from effbench.launch.worker import WorkerError
from effbench.plugin.discovery import discover
from effbench.store.calibration import Calibration
from tests.end_to_end.conftest import effbench

RATES = {
    "torch": "2.13.0",
    "timer": {"resolution_s": 1e-8, "cost_s": 5e-8},
    "matmul_flops_per_s": {"cpu float32 1": 5e10, "cpu float32 2": 9e10, "cpu bfloat16 1": 8e9, "cpu bfloat16 2": 1e9},
    "copy_bytes_per_s": {"cpu 1": 1e10, "cpu 2": 2e10},
}


def test_everything_is_measured_kept_and_said(tmp_path):
    done = effbench("calibrate", "--rounds", "3", "--json", cwd=tmp_path, check=0, XDG_CACHE_HOME=str(tmp_path / "cache"))
    said = json.loads(done.stdout)
    slowdowns = said.pop("smallest_slowdown")
    found = Calibration.model_validate(said)
    [file] = (tmp_path / "cache" / "effbench").glob("calibration-*.json")
    assert Calibration.model_validate_json(file.read_bytes()) == found
    assert file.name == f"calibration-{found.machine}.json"
    cores = len(os.sched_getaffinity(0))
    assert {f"cpu float32 {n}" for n in {1, cores}} <= set(found.matmul_flops_per_s)
    assert found.paired_noise.rounds == 3
    assert set(found.paired_noise.sd) == set(calibrate.COMPARED) == set(slowdowns)
    for metric, noise in found.paired_noise.sd.items():
        assert noise > 0
        assert slowdowns[metric]["10"] == smallest_slowdown(noise, 10, 0.03)
    assert found.empty_trial_s > 0


@pytest.fixture
def ran(monkeypatch):
    """Calibrate with rates and trials that the test makes: each trial's speed, or how it failed."""

    class Worker:
        def __init__(self, *arguments): ...
        def start(self): ...
        def close(self): ...

    def go(*speeds, seconds=0.0, rounds=10):
        trials = iter(speeds)

        def run(worker, calibrated, request):
            speed = 1.0 if request["phase_skips"] else next(trials)
            failed = isinstance(speed, str)
            metrics = {} if failed else {metric: {"median": speed} for metric in calibrate.COMPARED}
            outcome = {
                "status": "failed" if failed else "ok",
                "error": speed if failed else None,
                "quality": None,
                "samples": {},
            }
            return calibrate.Answer(outcome=outcome | {"metrics": metrics})

        monkeypatch.setattr(calibrate, "_rates", lambda: RATES)
        monkeypatch.setattr(calibrate, "Worker", Worker)
        monkeypatch.setattr(calibrate, "_run", run)
        return calibrate.calibrate(discover(), rounds, seconds, lambda what: None)

    return go


def test_noise_is_the_deviation_of_log_ratios_within_rounds_whatever_drifts_between_them(ran):
    noise = ran(100, 101, 200, 202, 50, 50.5).paired_noise
    assert noise.rounds == 3, "out of time, but never fewer than three"
    assert noise.sd == pytest.approx(dict.fromkeys(calibrate.COMPARED, 0.0), abs=1e-12)
    noise = ran(100, 100 * math.e, 100, 100, 100 * math.e, 100, seconds=60, rounds=3).paired_noise
    assert noise.sd["train.tokens_per_s"] == pytest.approx(1.0)


def test_a_trial_that_fails_ends_it_with_its_reason(ran):
    with pytest.raises(WorkerError, match="no such kernel"):
        ran(100, "no such kernel")


def test_the_table_says_what_is_seen_and_what_is_missing(ran, capsys, monkeypatch):
    from effbench.cli.calibrate import _show

    monkeypatch.setenv("COLUMNS", "160")
    _show(ran(100, 101, 100, 99, 100, 100))
    shown = capsys.readouterr().out
    lines = {line.split("│")[0].strip(): [cell.strip() for cell in line.split("│")[1:]] for line in shown.splitlines()}
    assert lines["matmul float32"] == ["50 GFLOP/s", "90 GFLOP/s"]
    assert lines["matmul bfloat16"] == ["8 GFLOP/s", "1 GFLOP/s"]
    assert "Slower than with one thread: cpu bfloat16 2." in shown
    assert lines["copy"] == ["10 GB/s", "20 GB/s"]
    noise, *slowdowns = lines["train.tokens_per_s"]
    assert noise == "1.0%"
    assert slowdowns == ["11.4%", "6.0%", "4.5%", "4.0%"]
