"""How fast effbench itself is: `pytest tests/benchmarks --benchmark-enable`. No time is asserted."""

import json
import subprocess
import sys

import pytest

from effbench.board.frame import load
from effbench.plan.plan import plan
from effbench.plan.suite import Suite
from effbench.plugin.discovery import discover
from effbench.store.store import Store
from tests.end_to_end.conftest import TINY
from tests.records import make_cell, make_record
from tests.store.test_store import MACHINE


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "tiny.json"
    file.write_text(json.dumps(TINY))
    return f"config:{file}"


def test_planning_10_000_cells(benchmark, config):
    axes = {"seq_len": list(range(16, 116)), "batch_size": list(range(1, 51)), "lora.rank": [4]}
    content = {"name": "s", "baseline": "full", "models": [config], "workloads": ["docs"], "axes": axes}
    suite = Suite.model_validate(content | {"stacks": {"full": [], "lora": ["lora"]}})
    planned = benchmark.pedantic(plan, args=(suite, discover()), rounds=3)
    assert len(planned.cells) == 10_000


def test_loading_10_000_records(benchmark, tmp_path, request):
    count = 10_000 if request.config.getoption("benchmark_enable") else 100
    store = Store(tmp_path, MACHINE, "s")
    store.open(MACHINE)
    for number in range(count // 10):
        record = make_record(cell=make_cell(seq_len=number + 1))
        for round_number in range(10):
            text = record.model_copy(update={"round": round_number}).model_dump_json(exclude_none=True)
            (store.folder / f"{record.cell_id}.r{round_number}.json").write_text(text)
    frame = benchmark.pedantic(load, args=(tmp_path,), rounds=1)
    assert frame[["cell_id", "round"]].drop_duplicates().shape[0] == count


def test_from_fork_to_first_step(benchmark, tmp_path, config):
    """A whole trial of the smallest model with the shortest sampling: what is left is the fixed cost."""
    from effbench.launch.orchestrate import Run
    from effbench.launch.requests import Sources

    catalog = discover()
    content = {"name": "s", "baseline": "full", "models": [config], "workloads": ["docs"], "stacks": {"full": []}}
    shortest = {"min_samples": 2, "min_seconds": 0, "interval": 100, "max_seconds": 0.001}
    suite = Suite.model_validate(content | {"training": {"steps": 1}, "inference": {"new_tokens": 2}, "sampling": shortest})
    run = Run(plan(suite, catalog), catalog, Sources(), tmp_path / "out", 1, catalog.launcher("local"))
    worker = run._worker(1)

    [turn] = run.pending()
    try:
        worker.start()
        found, _ = benchmark.pedantic(run._attempt, args=(worker, turn, lambda phase: None), rounds=5, warmup_rounds=1)
    finally:
        worker.close()
    assert found["status"] == "ok"


def test_the_command_line_starts(benchmark):
    command = [sys.executable, "-m", "effbench", "--help"]
    done = benchmark.pedantic(subprocess.run, args=(command,), kwargs={"capture_output": True, "check": True}, rounds=3)
    assert done.stdout
