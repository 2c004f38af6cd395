"""Rounds, budgets, and disturbed trials, through the real command line."""

import subprocess
import sys

import pytest

from effbench.store.machine import this_machine
from effbench.store.store import read_records
from tests.end_to_end.conftest import effbench, records

SLOW = '''
import time
from dataclasses import replace
from typing import ClassVar
from effbench.plugin import Technique, hookimpl


def slowed(part, seconds):
    def run(*arguments):
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            pass
        return part(*arguments)
    return run


class Slow(Technique):
    """Every part takes 20 ms longer."""

    name: ClassVar = "slow"
    family: ClassVar = "other"

    def infer(self, inference, ctx):
        return replace(inference, prefill=slowed(inference.prefill, 0.02), decode=slowed(inference.decode, 0.02))


@hookimpl
def register_techniques(register):
    register(Slow)
'''
STACKS = 'slow = ["slow"]\nslower = ["slow", "slow"]\n'


@pytest.fixture
def infer_suite(suite, tmp_path):
    (tmp_path / "slow.py").write_text(SLOW)
    file = suite(STACKS)
    text = (
        file.read_text().replace("rounds = 1", 'phases = ["infer"]\nrounds = 1').replace("min_samples = 6", "min_samples = 2")
    )
    file.write_text(text + '[ranking]\nby = "infer.prefill_tokens_per_s"\n')
    return file


def test_a_budget_stops_after_one_full_round_and_the_same_command_goes_on(infer_suite, tmp_path):
    arguments = ["run", infer_suite, "--plugin", "slow.py", "--results", "out", "--rounds", "3"]
    done = effbench(*arguments, "--budget", "1s", cwd=tmp_path, check=0)
    assert len(records(tmp_path / "out")) == 3
    assert "the budget is used up: 6 trials left, cells have 1 to 1 rounds" in done.stdout
    effbench(*arguments, "--budget", "1h", cwd=tmp_path, check=0)
    assert len(records(tmp_path / "out")) == 9


def test_a_bad_budget_is_one_line(infer_suite, tmp_path):
    done = effbench("run", infer_suite, "--plugin", "slow.py", "--budget", "soon", cwd=tmp_path, check=2)
    assert done.stderr.strip() == "effbench: budget 'soon': expected hours, minutes and seconds, for instance 90s, 10m or 1h30m"


def test_real_hogs_make_trials_dirty_which_are_repeated_marked_and_left_out(infer_suite, tmp_path):
    hogs = [
        # Each in a session of its own: Linux shares cores out between sessions first, and one session of hogs is but one rival.
        subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True)
        for _ in range(2 * this_machine().cores)
    ]
    try:
        arguments = ["run", infer_suite, "--plugin", "slow.py", "--results", "out", "--set", "limits.dirty_repeats=1"]
        done = effbench(*arguments, cwd=tmp_path, check=0)
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()
    found = [record for _, record in read_records(tmp_path / "out").records]
    assert [record.attempt for record in found] == [2, 2, 2]
    assert all("other programs used" in record.dirty for record in found)
    assert all(record.conditions.other_cpu > 0.5 for record in found)
    assert done.stdout.count("disturbed, once more") == 3
    assert "1 of 1 trials of `slow`: timings left out, disturbed" in done.stdout
    assert "3 trials stayed disturbed" in done.stderr


def test_meters_can_be_chosen_and_probes_run_in_the_first_round_alone(infer_suite, tmp_path):
    arguments = ["run", infer_suite, "--plugin", "slow.py", "--stack", "full", "--rounds", "2"]
    effbench(*arguments, "--results", "all", cwd=tmp_path, check=0)
    first, second = (records(tmp_path / "all")["full", number]["metrics"] for number in (1, 2))
    probed = first.keys() - second.keys() - {"infer.prefill_mfu"}  # which a machine has once it was calibrated
    assert {"infer.prefill_flops", "infer.decode_token_flops"} <= probed
    assert not probed & {"infer.prefill_s", "infer.model_bytes"}
    effbench(*arguments, "--results", "one", "--set", 'meters=["latency"]', cwd=tmp_path, check=0)
    chosen = records(tmp_path / "one")["full", 1]["metrics"]
    assert set(chosen) == {"infer.prefill_s", "infer.decode_token_s", "infer.end_to_end_s"}
    done = effbench(*arguments, "--set", 'meters=["latencey"]', cwd=tmp_path, check=2)
    assert "unknown meter 'latencey': did you mean 'latency'" in done.stderr
