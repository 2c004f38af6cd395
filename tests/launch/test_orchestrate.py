"""The schedule, and what counts as done."""

import json
from collections import Counter
from pathlib import Path

import pytest

from effbench.launch.orchestrate import Run, rounds_of, scrubbed
from effbench.launch.requests import Sources, timeout_s
from effbench.launch.schedule import turns
from effbench.plan.plan import plan
from effbench.plan.suite import Suite
from effbench.plugin.discovery import discover
from tests.end_to_end.conftest import TINY


@pytest.fixture
def make(tmp_path):
    file = tmp_path / "tiny.json"
    file.write_text(json.dumps(TINY))
    catalog = discover()

    def run(rounds=2, suite=None, **keywords):
        axes = {"seq_len": [16, 32], "batch_size": [1, 2, 4]}
        content = {"name": "s", "baseline": "full", "models": [f"config:{file}"], "workloads": ["docs"], "axes": axes}
        suite = Suite.model_validate(content | {"stacks": {"full": [], "lora": ["lora"]}} | (suite or {}))
        return Run(plan(suite, catalog), catalog, Sources(), tmp_path / "out", rounds, catalog.launcher("local"), **keywords)

    return run


def finish(run, count, **found):
    for turn in run.pending()[:count]:
        run.store.write(run._record(turn.cell, turn.round, {"status": "ok", "wall_s": 1.0} | found), None)


def test_a_record_says_how_its_stack_leaks_the_future(make, monkeypatch):
    monkeypatch.setattr(type(discover().technique("lora", {})), "leaks", lambda self, cell: "it peeks")
    run = make(rounds=1)
    finish(run, 12)
    found = {record.cell.stack: record.leaks for _, record in run.store.read().records}
    assert found == {"full": None, "lora": "it peeks"}


def test_a_stack_that_compiles_has_more_time(make, monkeypatch):
    monkeypatch.setattr(type(discover().technique("lora", {})), "compiles", True)
    run = make(suite={"limits": {"timeout_s": 100, "compile_s": 50}})
    given = {cell.stack: timeout_s(run.plan, cell, run.catalog) for cell in run.plan.cells}
    assert given == {"full": 100, "lora": 150}


def missing(run):
    """What is pending because nothing has measured it."""
    return [turn for turn in run.pending() if not turn.again]


def test_every_round_visits_every_cell_once_in_its_own_order(make):
    schedule = make().pending()
    rounds = [[turn.cell.id for turn in schedule if turn.round == n] for n in (1, 2)]
    assert sorted(rounds[0]) == sorted(rounds[1])
    assert len(set(rounds[0])) == 12
    assert rounds[0] != rounds[1]
    assert make().pending() == schedule


def test_a_workload_of_fewer_rounds_is_left_out_of_the_others(make):
    suite = {"workloads": ["docs", "docstrings"], "for_workload": {"docstrings": {"rounds": 1}}}
    schedule = make(rounds=2, suite=suite).pending()
    count = Counter((turn.round, turn.cell.workload) for turn in schedule)
    assert count == {(1, "docs"): 12, (1, "docstrings"): 12, (2, "docs"): 12}


def test_the_suites_settings_are_left_without_paths(make, tmp_path):
    text = tmp_path / "notes.jsonl"
    text.write_text("\n".join(json.dumps({"text": f"Text {n}."}) for n in range(100)))
    model, workload = f"config:{tmp_path / 'tiny.json'}", f"text:{text}"
    suite = {"workloads": ["docs", workload], "for_workload": {workload: {"models": [model], "rounds": 1}}}
    kept = (make(suite=suite).store.folder / "suite.json").read_text()
    assert str(tmp_path) not in kept
    own = json.loads(kept)["for_workload"]["text:notes.jsonl"]
    assert (own["models"], own["rounds"]) == (["config:tiny.json"], 1)


def test_an_interrupted_run_continues_the_same_schedule(make):
    first = make()
    finish(first, 5)
    assert missing(make()) == first.pending()[5:]
    assert len(missing(make(rounds=3))) == 36 - 5


def test_records_of_older_code_do_not_count(make, monkeypatch):
    finish(make(), 12)
    assert len(make(rounds=1).pending()) == 0
    assert len(make(rounds=1).records()) == 12
    monkeypatch.setattr("effbench.launch.fingerprint._version", lambda library: "0.0")
    later = make(rounds=1)
    assert len(later.pending()) == 12
    assert later.records() == []
    assert rounds_of(later.records(), later.plan.cells) == (0, 0)


def test_failed_trials_wait_for_the_flag_and_skips_never_count(make):
    finish(make(), 3, status="failed", error="x")
    assert len(missing(make(rounds=1))) == 9
    assert len(missing(make(rounds=1, retry_failed=True))) == 12


def test_dirty_trials_count_until_they_are_asked_for_again(make):
    finish(make(), 12, dirty="other programs used 2 cores")
    assert make(rounds=1).pending() == []
    assert len(make(rounds=1, retry_failed=True).pending()) == 12


def test_a_round_cut_in_two_measures_its_baseline_again_and_keeps_both(make):
    first = make(rounds=1)
    for turn in first.pending():
        if turn.cell.stack == "full":
            first.store.write(first._record(turn.cell, 1, {"status": "ok", "wall_s": 1.0}), None)
    second = make(rounds=1)
    assert {(turn.cell.stack, turn.again) for turn in second.pending()} == {("full", True), ("lora", False)}
    again = next(turn for turn in second.pending() if turn.again)
    second.store.write(second._record(again.cell, 1, {"status": "ok", "wall_s": 1.0}), None, beside=True)
    found = [r.session for _, r in second.store.read().records if r.cell_id == again.cell.id]
    assert sorted(found) == sorted([first.session, second.session])


def record(run, turn, **found):
    run.store.write(run._record(turn.cell, turn.round, {"status": "ok", "wall_s": 1.0} | found), None, beside=turn.again)


def test_a_stack_whose_baseline_was_still_missing_is_measured_again_beside_it(make):
    first = make(rounds=1)
    for turn in first.pending():
        if turn.cell.stack == "lora":
            record(first, turn)
    second = make(rounds=1)
    assert {(turn.cell.stack, turn.again) for turn in second.pending()} == {("full", False), ("lora", True)}
    for turn in second.pending()[:1]:  # cut again, between a baseline and its stack or the other way round
        record(second, turn)
    third = make(rounds=1)
    assert len(third.pending()) == 12  # no session has any pair yet
    for turn in third.pending():
        record(third, turn)
    assert make(rounds=1).pending() == []


SPREAD = {
    "axes": {"seq_len": [16], "batch_size": [2], "world_size": [1, 2]},
    "stacks": {"full": [], "lora": ["lora"], "lora_ddp": ["lora", "ddp"], "bitfit_ddp": ["bitfit", "ddp"]},
}


@pytest.mark.parametrize(
    ("late", "along"),
    [
        ("lora_ddp", {("full", 1), ("lora", 1)}),
        ("bitfit_ddp", {("full", 1), ("bitfit_ddp", 1)}),  # no `bitfit` alone: on one rank it is the same
    ],
)
def test_a_parallel_stack_takes_its_serial_stack_along(make, late, along):
    first = make(rounds=1, suite=SPREAD)
    assert len(first.pending()) == 6
    for turn in first.pending():
        if (turn.cell.stack, turn.cell.world_size) != (late, 2):
            record(first, turn)
    second = make(rounds=1, suite=SPREAD)
    assert {(t.cell.stack, t.cell.world_size) for t in second.pending() if t.again} == along
    assert [(t.cell.stack, t.cell.world_size) for t in second.pending() if not t.again] == [(late, 2)]
    for turn in second.pending():
        record(second, turn)
    assert make(rounds=1, suite=SPREAD).pending() == []


def test_a_disturbed_baseline_that_is_tried_again_takes_its_stack_along(make):
    first = make(rounds=1)
    for turn in first.pending():
        record(first, turn, dirty="hogs" if turn.cell.stack == "full" and turn.cell.seq_len == 16 else None)
    assert make(rounds=1).pending() == []
    again = make(rounds=1, retry_failed=True).pending()
    assert {(turn.cell.stack, turn.again) for turn in again} == {("full", False), ("lora", True)}
    assert {turn.cell.seq_len for turn in again} == {16}


def test_only_the_chosen_cells_and_their_baselines_go_on_and_in_the_same_order(make):
    run = make(rounds=3)
    every = [turn.cell for turn in run.pending() if turn.round == 3]
    chosen = {cell.id for cell in every if cell.stack == "lora" and cell.batch_size == 2}
    expected = [cell for cell in every if cell.batch_size == 2]
    assert [turn.cell for turn in turns(run.plan, range(3, 4), {}, chosen)] == expected
    assert len(expected) == 4


def test_the_longest_trial_of_a_cell_is_what_the_budget_knows(make):
    first = make(rounds=3)
    for turn in first.pending():
        record(first, turn, wall_s={1: 2.0, 2: 9.0, 3: 1.0}[turn.round])
    assert set(make().measured.seconds.values()) == {9.0}


def test_messages_lose_this_machines_paths():
    text = scrubbed(f'File "{Path.cwd()}/x.py", line 3; {Path.home()}/y')
    assert str(Path.cwd()) not in text
    assert str(Path.home()) + "/" not in text
