import aa
import fixed_cost
import interference
import pytest
from runs import Trial, disturbed, run_suite

from effbench.plan.suite import read_suite
from tests.records import make_record

SUITES = {
    "aa": aa.SUITE,
    "interference": interference.SUITE.format(threads=2, steps=5),
    "fixed-cost": fixed_cost.SUITE.format(config="config.json", world_size=2, stack='["ddp"]'),
}


@pytest.mark.parametrize("name", SUITES)
def test_suites_are_valid(name, tmp_path):
    file = tmp_path / "suite.toml"
    file.write_text(SUITES[name])
    assert read_suite(file).name == name


def test_fixed_cost_is_what_remains_within_a_trial_and_between_records():
    def trial(number, wall_s, written_at):
        samples = {"step": [0.5, 0.5], "end_to_end": [1.0]}
        return Trial(make_record(round_number=number, wall_s=wall_s), samples, written_at)

    trials = [trial(1, 2.3, 100.0), trial(2, 2.1, 102.4), trial(3, 2.2, 104.8)]
    assert fixed_cost.report(trials) == (
        "median 0.20 s, largest 0.30 s; from record to record 0.40 s (3 trials of 2.00 s measured work)"
    )


def test_log_ratios_are_paired_by_round(tmp_path, monkeypatch):
    import pandas as pd

    rows = [
        ("s", number, stack, 100 * number * (1.1 if stack == "two" else 1)) for number in (1, 2) for stack in ("one", "two")
    ]
    frame = pd.DataFrame([*rows, ("s", 3, "one", 5.0)], columns=["session", "round", "stack", "value"]).assign(metric="m")
    monkeypatch.setattr(aa.effbench, "load", lambda path: frame)
    assert aa.log_ratios(tmp_path, "m") == pytest.approx([0.09531, 0.09531], abs=1e-5)


def test_a_run_that_fails_ends_with_its_output(tmp_path):
    with pytest.raises(SystemExit, match=r"ended with 2:(.|\n)*no_such_key"):
        run_suite("no_such_key = 1", tmp_path)


def test_the_orchestrators_cpu_time_is_told_from_its_workers(tmp_path, monkeypatch):
    """A stand-in for effbench: its own process works for a while, and a child of it twice as long."""
    work = "import time\nwhile time.process_time() < {}: pass\n"
    stand_in = tmp_path / "effbench.py"
    stand_in.write_text(
        f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {work.format(0.8)!r}])\n" + work.format(0.4)
    )
    (tmp_path / "results").mkdir()
    monkeypatch.chdir(tmp_path)  # `python -m` looks there first
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    run = run_suite("", tmp_path)
    assert 0 < run.orchestrator_cpu_s < run.workers_cpu_s  # taken together, or the other way round, it would be more
    assert not run.trials


def test_disturbed_trials_are_told():
    quiet = Trial(make_record(), {}, 0.0)
    assert disturbed([quiet]) is None
    noisy = Trial(make_record(dirty="other programs used 0.9 cores"), {}, 0.0)
    assert disturbed([quiet, noisy]) == "NOT A QUIET MACHINE: 1 of 2 trials were disturbed (other programs used 0.9 cores)"
