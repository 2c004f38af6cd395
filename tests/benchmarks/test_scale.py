"""What loading costs as trials become more: `EFFBENCH_TRIALS=10000 pytest tests/benchmarks/test_scale.py --benchmark-enable`.

No time is asserted; that cost is linear is, in calls of functions, which do not depend on what else a machine does.
`tools/many_trials.py` has times and memory for 100,000 trials.
"""

import cProfile
import os
import pstats

import pytest

from effbench.board.frame import load
from effbench.board.leaderboard import build
from effbench.store import index
from effbench.store.pack import pack, unpack
from effbench.store.store import Store
from tests.records import make_cell, make_record
from tests.store.test_store import MACHINE

COUNT = int(os.environ.get("EFFBENCH_TRIALS", "60"))
OLD_NS = 1_700_000_000_000_000_000


def fill(root, count):
    """Boards of 2 stacks in 3 rounds each."""
    root.mkdir()
    for number in range(count // 6):
        store = Store(root, MACHINE, f"s{number}")
        store.folder.mkdir(parents=True)
        for stack in ("full", "fast"):
            cell = make_cell(stack, suite=f"s{number}", techniques=() if stack == "full" else ((stack, {}),))
            for round_number in range(1, 4):
                record = make_record(cell=cell, round_number=round_number, tokens_per_s=1000.0 + round_number)
                file = store.folder / f"{cell.id}.r{round_number}.json"
                file.write_text(record.model_dump_json(exclude_none=True))
                os.utime(file, ns=(OLD_NS, OLD_NS))
    return root


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "MIN_FILES", 1)
    monkeypatch.setattr(index, "folder", lambda: tmp_path / "cache")
    return fill(tmp_path / "results", COUNT)


def values(frame):
    return frame[["file", "metric", "value"]].to_numpy().tolist()


def test_from_json(benchmark, results):
    frame = benchmark.pedantic(load, args=(results,), rounds=1)
    assert frame["file"].nunique() == COUNT // 6 * 6


def test_with_the_index(benchmark, results):
    first = load(results)
    assert values(benchmark.pedantic(load, args=(results,), rounds=3)) == values(first)


def test_packed(benchmark, results):
    first = load(results)
    list(pack(results))
    assert values(benchmark.pedantic(load, args=(results,), rounds=3)) == values(first)


def test_packing_and_unpacking(benchmark, results):
    files = sorted(results.rglob("*.json"))

    def there_and_back():
        return sum(done.trials for done in pack(results)), sum(done.trials for done in unpack(results))

    assert benchmark.pedantic(there_and_back, rounds=1) == (len(files), len(files))
    assert sorted(results.rglob("*.json")) == files


def test_boards(benchmark, results):
    assert len(benchmark.pedantic(build, args=(results,), rounds=1)) == COUNT // 6


def calls(function, *arguments):
    profile = cProfile.Profile()
    profile.runcall(function, *arguments)
    return pstats.Stats(profile).total_calls


@pytest.mark.parametrize("what", ["json", "index", "packed", "boards"])
def test_cost_is_linear(tmp_path, monkeypatch, what):
    monkeypatch.setattr(index, "MIN_FILES", 1)
    monkeypatch.setattr(index, "folder", lambda: tmp_path / "cache")
    read = build if what == "boards" else load
    read(fill(tmp_path / "first", 6))  # imports what is imported once
    found = []
    for count in (12, 24, 48):
        folder = fill(tmp_path / f"results{count}", count)
        if what == "packed":
            list(pack(folder))
        if what == "index":
            load(folder)
        found.append(calls(read, folder))
    first, second = found[1] - found[0], found[2] - found[1]
    assert second < 2.3 * first  # twice as many trials more; a square would give four times as many calls
