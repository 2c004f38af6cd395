"""The records that the repository carries."""

from pathlib import Path

import pandas as pd
import pytest

from effbench.board.chance import AT_CHANCE
from effbench.board.frame import load
from effbench.board.leaderboard import build
from effbench.plan.plan import plan
from effbench.plan.suite import read_suite, standard_suites
from effbench.plugin.discovery import discover
from effbench.store.store import read_records

ROOT = Path(__file__).parents[2]
SUITES = {file.stem: file for file in standard_suites()}


@pytest.fixture(scope="module")
def frame():
    return load(ROOT / "results").drop_duplicates("file")


def test_every_file_is_a_record(frame):
    assert len(frame)
    assert frame.attrs["problems"] == []


def test_a_cells_id_is_still_the_one_it_was_recorded_under():
    records = [record for _, record in read_records(ROOT / "results").records]
    assert {record.cell_id for record in records} == {record.cell.id for record in records}
    cell = next(record.cell for record in records if record.cell.allocator == "default")
    assert cell.model_copy(update={"allocator": "default"}).id == cell.id
    assert cell.model_copy(update={"allocator": "keep"}).id != cell.id


@pytest.mark.parametrize("suite", SUITES)
def test_a_suite_has_all_its_cells_in_all_rounds_or_no_records_yet(frame, suite):
    """A cell that turned out too large for the machine's memory has been measured too."""
    own = frame[frame["suite"] == suite]
    if own.empty:
        pytest.skip("no records yet")
    planned = plan(read_suite(SUITES[suite]), discover())
    good = own[own["status"] == "ok"].groupby("cell_id", observed=True)["round"].nunique()
    too_large = set(own[own["status"] == "oom"]["cell_id"])
    wanted = {cell.id: planned.rounds(cell, 3) for cell in planned.cells if cell.id not in too_large}
    assert {name: rounds for name, rounds in wanted.items() if good.get(name, 0) < rounds} == {}


def test_on_recall_exact_attention_succeeds_and_what_cannot_reach_is_at_chance():
    boards = [b for b in build(ROOT / "results") if b.suite == "long-range" and b.workload.startswith("recall")]
    if not boards:
        pytest.skip("no records yet")
    for board in boards:
        rows = board.rows.set_index("stack")
        assert rows.loc["full", "quality"] >= 0.95
        assert rows.loc["full", "steps"] == rows.loc["window", "steps"]
        for name in ("window", "constant"):
            assert rows.loc[name, "status"] == AT_CHANCE
            assert pd.isna(rows.loc[name, "rank"])


def test_no_record_tells_whose_machine_it_was():
    files = [file.read_text(encoding="utf-8") for file in (ROOT / "results").rglob("*.json")]
    packed = [record.model_dump_json() for _, record in read_records(ROOT / "results").records]
    for text in files + packed:
        assert "/home/" not in text
        assert "/root/" not in text
        assert "/work/" not in text
