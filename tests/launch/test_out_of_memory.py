"""What follows from a trial that ran out of memory: no worker runs here, the trials' ends are made up."""

import io
import json
from dataclasses import replace

import pytest

from effbench.cli.progress import PlainProgress
from effbench.launch.orchestrate import Run
from effbench.launch.out_of_memory import OutOfMemory
from effbench.launch.requests import Sources
from effbench.plan.plan import plan
from effbench.plan.suite import Suite
from effbench.plugin.discovery import discover
from tests.end_to_end.conftest import TINY
from tests.records import make_cell


class NoWorker:
    """Stands where a worker would."""

    def start(self):
        """Nothing to start."""


@pytest.fixture
def make(tmp_path, monkeypatch):
    """A run whose trials of `stack` end as oom from a shape on; `launched` lists the trials that were really begun."""
    file = tmp_path / "tiny.json"
    file.write_text(json.dumps(TINY))
    catalog = discover()
    monkeypatch.setattr(Run, "_worker", lambda self, world_size: NoWorker())

    def run(rounds=1, ooms=lambda cell: cell.stack == "lora" and cell.seq_len >= 32, memory_gb=None, **keywords):
        content = {"name": "s", "baseline": "full", "models": [f"config:{file}"], "workloads": ["docs"], "seed": 2}
        axes = {"seq_len": [16, 32, 64], "batch_size": [1, 2]}
        limits = {"memory_gb": memory_gb} if memory_gb else {}
        suite = Suite.model_validate(content | {"axes": axes, "stacks": {"full": [], "lora": ["lora"]}, "limits": limits})
        made = Run(plan(suite, catalog), catalog, Sources(), tmp_path / "out", rounds, catalog.launcher("local"), **keywords)
        made.launched = []

        def attempt(worker, turn, on_phase):
            made.launched.append((turn.round, turn.cell.stack, turn.cell.seq_len, turn.cell.batch_size))
            status = {"status": "oom", "error": "no room"} if ooms(turn.cell) else {"status": "ok"}
            return status | {"wall_s": 1.0, "dirty": None}, None

        monkeypatch.setattr(made, "_attempt", attempt)
        return made

    return run


def execute(run):
    progress = io.StringIO()
    run.execute(PlainProgress(len(run.pending()), progress))
    return progress.getvalue().splitlines()


def ends(run, stack="lora"):
    return {(r.round, r.cell.seq_len, r.cell.batch_size): r.status for r in run.records() if r.cell.stack == stack}


def test_only_what_is_larger_and_else_the_same_is_left_out():
    known = OutOfMemory({})
    known.add(make_cell(seq_len=64, batch_size=2))
    assert known.reason(make_cell(seq_len=64, batch_size=2)) == "it ran out of memory before"
    assert known.reason(make_cell(seq_len=128, batch_size=2)) == "a smaller cell, seq_len 64, ran out of memory"
    assert known.reason(make_cell(seq_len=64, batch_size=4)) == "a smaller cell, batch_size 2, ran out of memory"
    assert known.reason(make_cell(seq_len=128, batch_size=4)) == "a smaller cell, seq_len 64, batch_size 2, ran out of memory"
    for other in (
        {"seq_len": 32},
        {"seq_len": 128, "batch_size": 1},
        {"stack": "x"},
        {"techniques": (("lora", {"rank": 2}),)},
        {"model": "m"},
        {"workload": "w"},
        {"dtype": "bfloat16"},
        {"world_size": 2},
        {"phases": ("train",)},
    ):
        assert known.reason(make_cell(**({"seq_len": 128, "batch_size": 2} | other))) is None, other


def test_a_larger_cell_of_other_phases_is_tried():
    larger = make_cell(seq_len=128)
    known = OutOfMemory({larger.id: {"train": "predicted to need 34 GiB, the limit is 24 GiB"}})
    known.add(make_cell(seq_len=64))
    assert known.reason(larger) is None
    assert known.reason(make_cell(seq_len=256)) is not None


def test_after_an_out_of_memory_larger_cells_are_recorded_and_not_launched(make):
    run = make(rounds=3)
    order = [(t.round, t.cell.stack, t.cell.seq_len, t.cell.batch_size) for t in run.pending()]
    lines = execute(run)
    ran_out = set()
    for turn in order:  # the same, worked out from the order by hand
        _, stack, seq_len, batch_size = turn
        known = stack == "lora" and any(n <= seq_len and b <= batch_size for n, b in ran_out)
        assert (turn in run.launched) is not known
        if stack == "lora" and seq_len >= 32 and not known:
            ran_out.add((seq_len, batch_size))
    assert run.launched == [turn for turn in order if turn in set(run.launched)]
    found = ends(run)
    assert len(found) == 18
    assert set(found.values()) == {"ok", "oom", "skipped"}
    assert [found[number, 32, 1] for number in (1, 2, 3)] == ["oom", "skipped", "skipped"]
    assert {found[number, 16, b] for number in (1, 2, 3) for b in (1, 2)} == {"ok"}
    assert {status for status in ends(run, "full").values()} == {"ok"}
    assert len(lines) == len(order)
    assert {line.partition(": skipped: ")[2] for line in lines} >= {"", "it ran out of memory before"}
    assert any(": skipped: a smaller cell, " in line for line in lines)


def test_it_is_known_when_the_run_goes_on_and_nothing_is_measured_twice_for_it(make):
    execute(make())
    again = make()
    assert again.pending() == []
    more = make(rounds=2)
    execute(more)
    assert len(more.launched) == 8  # every cell of the baseline, and the two of the other stack that fit
    assert {status for (number, *_), status in ends(more).items() if number == 2} == {"ok", "skipped"}
    assert make(rounds=2).pending() == []


def test_a_larger_cell_that_a_stopped_run_left_takes_no_baseline_along(make):
    first = make()
    for turn in first.pending():
        cell = turn.cell
        status = {"status": "oom", "error": "no room"} if cell.stack == "lora" and cell.seq_len >= 32 else {"status": "ok"}
        if (cell.stack, cell.seq_len) != ("lora", 64):
            first.store.write(first._record(cell, 1, status | {"wall_s": 1.0}), None)
    second = make()
    assert {(t.cell.stack, t.cell.seq_len, t.again) for t in second.pending()} == {("lora", 64, False)}
    execute(second)
    assert second.launched == []
    assert ends(second)[1, 64, 2] == "skipped"


def test_retrying_launches_them_again_and_older_code_says_nothing(make, monkeypatch):
    execute(make())
    assert make().pending() == []
    retried = make(ooms=lambda cell: False, retry_failed=True)
    execute(retried)
    assert set(ends(retried).values()) == {"ok"}
    execute(make(rounds=2))
    monkeypatch.setattr("effbench.launch.fingerprint._version", lambda library: "0.0")
    assert (
        make().measured.out_of_memory.reason(next(c for c in make().plan.cells if c.stack == "lora" and c.seq_len == 64))
        is None
    )


def test_a_skip_of_the_plan_never_replaces_what_was_measured(make):
    execute(make(ooms=lambda cell: False))
    limited = make(memory_gb=1e-6)
    assert [skip.cell.stack for skip in limited.plan.skips] == ["full"] * 6
    execute(limited)
    kept = [record.status for _, record in limited.store.read().records]
    assert kept == ["ok"] * 12


def test_a_skip_of_the_plan_never_replaces_a_measured_out_of_memory(make):
    execute(make(ooms=lambda cell: cell.stack == "full" and cell.seq_len == 16 and cell.batch_size == 1))
    limited = make(memory_gb=1e-6)
    execute(limited)
    kept = [record.status for _, record in limited.store.read().records if record.cell.stack == "full"]
    assert kept.count("oom") == 1


def test_a_phase_that_fits_by_now_is_measured(make):
    first = make()
    for turn in first.pending():
        phases = {"train": "skipped: predicted to need 34 GiB, the limit is 24 GiB", "infer": "ok"}
        first.store.write(first._record(turn.cell, 1, {"status": "ok", "wall_s": 1.0, "phases": phases}), None)
    assert len(make().pending()) == 12
    run = make()
    still = {cell.id: {"train": "predicted to need 34 GiB, the limit is 24 GiB"} for cell in run.plan.cells}
    assert replace(run, plan=replace(run.plan, phase_skips=still)).pending() == []
