"""Runs that a cluster measures: their elements, and what is told while others measure them."""

import json
import shutil

import pytest

from effbench.cli.array import Asked
from effbench.launch import array
from effbench.launch.array import ArrayRun, summary
from effbench.launch.orchestrate import Run
from effbench.launch.requests import Sources
from effbench.launch.schedule import Part
from effbench.plan.plan import plan
from effbench.plan.suite import Suite
from effbench.plugin.discovery import discover
from effbench.plugin.launcher import ElementState
from tests.end_to_end.conftest import TINY


@pytest.fixture
def make(tmp_path):
    """The two sides of a run: the one that submits, and the session of one part."""
    file = tmp_path / "tiny.json"
    file.write_text(json.dumps(TINY))
    catalog = discover()
    content = {"name": "s", "baseline": "full", "models": [f"config:{file}"], "workloads": ["docs"], "threads": 2}
    axes = {"seq_len": [16], "batch_size": [4], "world_size": [1, 2]}
    suite = Suite.model_validate(content | {"axes": axes, "stacks": {"full": [], "lora": ["lora"], "ddp": ["ddp"]}})

    def submitting(rounds=2, **keywords):
        return ArrayRun(plan(suite, catalog), catalog, tmp_path / "out", rounds, **keywords)

    def session(number, size):
        launcher = catalog.launcher("local")
        return Run(plan(suite, catalog), catalog, Sources(), tmp_path / "out", number, launcher, part=Part(number, size))

    return submitting, session


def measure(session, count=None, **found):
    for turn in session.pending()[:count]:
        record = session._record(turn.cell, turn.round, {"status": "ok", "wall_s": 1.0} | found)
        session.store.write(record, None, beside=turn.again)


def shapes(turns):
    return sorted((turn.cell.stack, turn.cell.world_size, turn.again) for turn in turns)


def test_an_element_is_one_round_of_one_world_size_with_the_baselines_of_its_pairs(make):
    submitting, session = make
    pending = submitting().pending()
    assert list(pending) == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert shapes(pending[Part(1, 1)]) == [("ddp", 1, False), ("full", 1, False), ("lora", 1, False)]
    # Written beside the one that the element of world size 1 measures, perhaps at the same time.
    assert shapes(pending[Part(1, 2)]) == [("ddp", 2, False), ("full", 1, True)]
    assert {turn.round for turn in pending[Part(2, 2)]} == {2}
    assert session(2, 2).pending() == pending[Part(2, 2)]  # what the node will find to do


def test_elements_get_the_runs_own_arguments_and_their_part(make, tmp_path):
    submitting, _ = make
    asked = Asked("my.toml", tmp_path, [tmp_path / "p.py"], ["ddp"], ["training.steps=4"], retry_failed=True)
    element = submitting().elements(asked.arguments())[1]
    assert (element.round, element.world_size) == (1, 2)
    assert element.arguments == (
        "run", "my.toml", "--results", str(tmp_path), "--plugin", str(tmp_path / "p.py"), "--stack", "ddp",
        "--set", "training.steps=4", "--retry-failed", "--only-round", "1", "--only-world-size", "2",
    )  # fmt: skip
    assert submitting().cores() == 4


def test_what_any_machine_has_measured_is_not_submitted(make, tmp_path):
    submitting, session = make
    measure(session(1, 1))
    shutil.copytree(tmp_path / "out", tmp_path / "copy")
    [machine] = (tmp_path / "out").iterdir()
    machine.rename(machine.with_name("another"))
    assert list(submitting().pending()) == [(1, 2), (2, 1), (2, 2)]
    assert [folder.parts[-2:] for folder in submitting().folders()] == [("another", "s")]
    assert len(submitting().records()) == 3


def test_an_element_that_was_cut_in_two_is_submitted_again(make):
    submitting, session = make
    measure(session(1, 1), count=2)
    assert Part(1, 1) in submitting().pending()
    measure(session(1, 1))
    assert Part(1, 1) not in submitting().pending()


def test_failed_trials_are_submitted_again_when_asked(make):
    submitting, session = make
    measure(session(1, 2), status="failed", error="x")
    assert Part(1, 2) not in submitting().pending()
    assert Part(1, 2) in submitting(retry_failed=True).pending()


class Script:
    """A submission whose elements fare as is written, and do something at each look."""

    def __init__(self, *looks):
        self._looks = list(looks)

    def look(self):
        states, act = self._looks.pop(0)
        act()
        return states


class Told:
    def __init__(self):
        self.lines, self.extra = [], 0

    def planned(self, trials):
        self.extra += trials

    def started(self, cell, round_number):
        pass

    def finished(self, record):
        self.lines.append((record.round, record.cell.stack, record.cell.world_size))

    def waiting(self, state):
        self.lines.append(state)


def test_records_are_told_once_as_they_appear_until_all_elements_have_ended(make, monkeypatch):
    monkeypatch.setattr(array, "_SHORTEST_PAUSE_S", 0.0)
    submitting, session = make
    measure(session(1, 1))
    watched, told = submitting(rounds=1), Told()
    running, done = ElementState("7_0", "RUNNING"), ElementState("7_0", "COMPLETED", ended=True)
    waits = ElementState("7_1", "PENDING", "Resources")
    dead = ElementState("7_1", "NODE_FAIL", ended=True, died=True)
    script = Script(
        ([running, waits], lambda: measure(session(1, 2), count=1)),
        ([running, dead], lambda: None),
        ([done, dead], lambda: measure(session(1, 2))),
    )
    assert watched.watch(script, told) == [done, dead]
    records = [line for line in told.lines if isinstance(line, tuple)]
    assert sorted(set(records)) == [(1, "ddp", 2), (1, "full", 1)]
    assert (len(records), told.extra) == (3, 1)  # what the part that was cut in two repeats
    states = [line for line in told.lines if isinstance(line, str)]
    assert states == ["1 pending (Resources), 1 running", "1 node_fail, 1 running"]


def test_many_elements_are_counted_by_state():
    states = [ElementState(f"7_{n}", "RUNNING") for n in range(3)] + [ElementState("7_3", "PENDING", "Priority")]
    assert summary(states) == "1 pending (Priority), 3 running"
