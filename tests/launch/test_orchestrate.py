"""The schedule, and what counts as done."""

import json
from pathlib import Path

import pytest

from effbench.launch.orchestrate import Run, Sources, scrubbed
from effbench.plan.plan import plan
from effbench.plan.suite import Suite
from effbench.plugin.discovery import discover
from tests.end_to_end.conftest import TINY


@pytest.fixture
def make(tmp_path):
    file = tmp_path / "tiny.json"
    file.write_text(json.dumps(TINY))
    catalog = discover()

    def run(rounds=2, **keywords):
        axes = {"seq_len": [16, 32], "batch_size": [1, 2, 4]}
        content = {"name": "s", "baseline": "full", "models": [f"config:{file}"], "workloads": ["docs"], "axes": axes}
        suite = Suite.model_validate(content | {"stacks": {"full": [], "lora": ["lora"]}})
        return Run(plan(suite, catalog), catalog, Sources(), tmp_path / "out", rounds, catalog.launcher("local"), **keywords)

    return run


def finish(run, count, **found):
    for number, cell in run.pending()[:count]:
        run.store.write(run._record(cell, number, {"status": "ok", "wall_s": 1.0} | found), None)


def test_every_round_visits_every_cell_once_in_its_own_order(make):
    schedule = make().pending()
    rounds = [[cell.id for number, cell in schedule if number == n] for n in (1, 2)]
    assert sorted(rounds[0]) == sorted(rounds[1])
    assert len(set(rounds[0])) == 12
    assert rounds[0] != rounds[1]
    assert [(n, c.id) for n, c in make().pending()] == [(n, c.id) for n, c in schedule]


def test_an_interrupted_run_continues_the_same_schedule(make):
    first = make()
    finish(first, 5)
    assert make().pending() == first.pending()[5:]
    assert len(make(rounds=3).pending()) == 36 - 5


def test_records_of_older_code_do_not_count(make, monkeypatch):
    finish(make(), 12)
    assert len(make(rounds=1).pending()) == 0
    monkeypatch.setattr("effbench.launch.fingerprint._version", lambda library: "0.0")
    assert len(make(rounds=1).pending()) == 12


def test_failed_trials_wait_for_the_flag_and_skips_never_count(make):
    finish(make(), 3, status="failed", error="x")
    assert len(make(rounds=1).pending()) == 9
    assert len(make(rounds=1, retry_failed=True).pending()) == 12


def test_messages_lose_this_machines_paths():
    text = scrubbed(f'File "{Path.cwd()}/x.py", line 3; {Path.home()}/y')
    assert str(Path.cwd()) not in text
    assert str(Path.home()) + "/" not in text
