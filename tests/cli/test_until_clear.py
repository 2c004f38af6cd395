"""`--until-clear`: the run's loop and the board together, on speeds that the test makes."""

import json
import random

import pytest

from effbench.board.clarity import LOOKS
from effbench.cli.run import _further
from effbench.launch.budget import Budget
from effbench.launch.orchestrate import Run
from effbench.launch.requests import Sources
from effbench.plan.plan import plan
from effbench.plan.suite import Suite
from effbench.plugin import Summary
from effbench.plugin.discovery import discover
from tests.end_to_end.conftest import TINY

SPEED = {"full": 1.0, "lora": 1.2, "pruned": 1.03}
SPREAD = {"full": 0.001, "lora": 0.001, "pruned": 0.2}


class Silent:
    more = 0

    def planned(self, trials):
        self.more += trials

    def started(self, cell, number): ...
    def phase(self, name): ...
    def repeated(self, reason): ...
    def finished(self, record): ...


@pytest.fixture
def session(tmp_path, monkeypatch):
    file = tmp_path / "tiny.json"
    file.write_text(json.dumps(TINY))
    content = {"name": "s", "baseline": "full", "models": [f"config:{file}"], "workloads": ["docs"]}
    suite = Suite.model_validate(content | {"stacks": {"full": [], "lora": ["lora"], "pruned": ["magnitude_pruning"]}})
    catalog, rng = discover(), random.Random(0)

    def attempt(self, worker, turn, on_phase):
        stack = turn.cell.stack
        speed = 1000 * SPEED[stack] * rng.lognormvariate(0, SPREAD[stack])
        metrics = {"train.tokens_per_s": Summary(median=speed, unit="tokens/s")}
        return {"status": "ok", "metrics": metrics, "wall_s": 1.0, "dirty": None}, None

    monkeypatch.setattr(Run, "_attempt", attempt)
    monkeypatch.setattr("effbench.launch.worker.Worker.start", lambda self: None)
    return Run(plan(suite, catalog), catalog, Sources(), tmp_path / "out", LOOKS[0], catalog.launcher("local"))


def rounds_of(session):
    counts = {}
    for _, record in session.store.read().records:
        counts[record.cell.stack] = counts.get(record.cell.stack, 0) + 1
    return counts


def test_what_is_unclear_goes_on_with_its_baseline_to_the_last_look(session):
    listener = Silent()
    left = session.execute(listener, Budget(), _further(session))
    assert left == []
    assert rounds_of(session) == {"full": LOOKS[-1], "lora": LOOKS[0], "pruned": LOOKS[-1]}
    assert listener.more == 2 * (LOOKS[-1] - LOOKS[0])


def test_all_stop_when_all_is_clear(session, monkeypatch):
    monkeypatch.setitem(SPREAD, "pruned", 0.001)
    monkeypatch.setitem(SPEED, "pruned", 1.1)
    session.execute(Silent(), Budget(), _further(session))
    assert rounds_of(session) == dict.fromkeys(SPREAD, LOOKS[0])


def test_the_budget_ends_it_too(session):
    clock = iter(range(0, 10_000, 2))
    left = session.execute(Silent(), Budget(50.0, lambda: next(clock)), _further(session))
    assert left
    assert LOOKS[0] <= rounds_of(session)["pruned"] < LOOKS[-1]
