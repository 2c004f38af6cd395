"""Machines side by side, and every kind of records that must not be compared."""

import json
from pathlib import Path

import pytest
from effbench_plugins.reporters import MachinesJsonReporter, MarkdownReporter, TableReporter

from effbench.board.frame import tidy
from effbench.board.leaderboard import build
from effbench.board.machines import side_by_side
from effbench.board.view import View
from effbench.store.record import Fingerprint
from tests.board.test_leaderboard import SETTINGS, board_of, rows_of, trials
from tests.board.test_view import moved
from tests.report.test_reporters import HOSTILE, cells_of

SLOWER = {"full": 100, "fast": 150, "same": 100}
FINGERPRINT = Fingerprint(techniques={}, weights="w", data="d", versions={"torch": "2.13.0"})


def boards_of(*records, **view):
    frame = tidy((Path(f"{r.machine}/{r.cell_id}.r{r.round}.json"), r) for some in records for r in some)
    return build(frame, SETTINGS, View(**view))


def other(**changes):
    return FINGERPRINT.model_copy(update=changes)


def test_each_machine_is_ranked_by_itself():
    boards = boards_of(trials(), trials(SLOWER, machine="m2"))
    assert [board.machine for board in boards] == ["m2", "machine"]
    alone = board_of(trials(SLOWER, machine="m2"))
    assert rows_of(boards[0]).equals(rows_of(alone))
    [table] = side_by_side(boards)
    assert table.machines == ("m2", "machine")
    ratios = table.rows.set_index(["stack", "machine"])["ratio"]
    assert ratios["fast", "m2"] == pytest.approx(1.5, rel=0.02)
    assert ratios["fast", "machine"] == pytest.approx(2, rel=0.02)
    assert table.rows.query("stack == 'fast'")["rank"].tolist() == ["1", "1"]
    assert table.rows.query("stack == 'full'")["verdict"].tolist() == ["baseline", "baseline"]
    assert table.rows["quality"].notna().all()
    assert table.notes == []


def test_one_machine_is_beside_none():
    assert side_by_side(boards_of(trials())) == []
    assert MachinesJsonReporter().files(boards_of(trials())) == {}


@pytest.mark.parametrize(
    ("records", "words"),
    [
        (lambda: trials(SLOWER, machine="m2", fingerprint=other(weights="v")), "other weights (v / w)"),
        (lambda: trials(SLOWER, machine="m2", fingerprint=other(methodology="1")), "other methodology (1 / 2)"),
        (lambda: moved(trials(SLOWER, machine="m2"), threads=2), "other settings (threads 2"),
        (lambda: moved(trials({"fast": 150}, machine="m2"), steps=9), "other settings"),
    ],
)
def test_what_was_measured_otherwise_is_not_side_by_side(records, words):
    [table] = side_by_side(boards_of(trials(), records()))
    assert table.rows.empty
    assert any(note.startswith("not side by side: m2 and machine have") and words in note for note in table.notes)
    assert "not side by side" in TableReporter().render(boards_of(trials(), records()))


def test_two_of_three_machines_are_side_by_side():
    third = trials(SLOWER, machine="m3", fingerprint=other(weights="v"))
    [table] = side_by_side(boards_of(trials(), trials(SLOWER, machine="m2"), third))
    assert table.machines == ("m2", "machine")
    assert any("m3" in note for note in table.notes)


def test_quality_on_other_text_is_not_beside_the_first_ones():
    [table] = side_by_side(boards_of(trials(), trials(SLOWER, machine="m2", fingerprint=other(data="e"))))
    assert table.rows.query("machine == 'm2'")["quality"].notna().all()
    assert table.rows.query("machine == 'machine'")["quality"].isna().all()
    assert table.rows["ratio"].notna().all()
    assert any("other text" in note for note in table.notes)


def test_machines_that_completed_other_cells_say_so():
    [table] = side_by_side(boards_of(trials(shapes=(64, 128)), trials(SLOWER, machine="m2")))
    assert any("compared on other cells" in note and "m2 on 1, machine on 2" in note for note in table.notes)


def test_slices_are_side_by_side_each():
    boards = boards_of(trials(shapes=(64, 128)), trials(SLOWER, shapes=(64, 128), machine="m2"), by=("seq_len",))
    assert [table.slice for table in side_by_side(boards)] == [{"seq_len": "128"}, {"seq_len": "64"}]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fingerprint": other(methodology="1")}, "methodologies"),
        ({"fingerprint": other(weights="v")}, "weights"),
    ],
)
def test_boards_that_were_split_say_so(change, words):
    boards = boards_of(trials({"full": 1000}), trials({"fast": 2000}, **change))
    assert len(boards) == 2
    assert all(any(f"of several {words}" in note for note in board.notes) for board in boards)


@pytest.mark.parametrize(("change", "words"), [({"device": "cuda"}, "devices"), ({"threads": 2}, "settings")])
def test_boards_of_other_devices_and_settings_say_so(change, words):
    boards = boards_of(trials({"full": 1000}), moved(trials({"fast": 2000}), **change))
    assert len(boards) == 2
    assert all(any(f"of several {words}" in note for note in board.notes) for board in boards)
    assert all(board.rows["train_speed_verdict"].ne("FASTER").all() for board in boards)


def test_tables_of_machines(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    boards = boards_of(trials(), trials(SLOWER, machine=HOSTILE))
    text = MarkdownReporter().render(boards)
    shown = cells_of(text, "train.tokens_per_s on")
    assert shown["full"] == ["1× (baseline) rank 2–3"] * 2
    assert sorted(cell[:5] for cell in shown["fast"]) == ["1.50×", "2.00×"]
    assert "bits_per_byte on" in text
    assert "<b>" not in text
    assert "\n# y" not in text
    terminal = TableReporter().render(boards)
    assert "machines side by side" in terminal
    assert "\x1b" not in terminal
    assert max(map(len, terminal.splitlines())) <= 120


def test_a_stack_of_one_machine_alone_has_a_dash_on_the_other():
    text = MarkdownReporter().render(boards_of(trials(), trials({"full": 1, "own": 2}, machine="m2")))
    assert cells_of(text, "train.tokens_per_s on")["own"][1] == "–"


def test_json_of_machines():
    [table] = json.loads(MachinesJsonReporter().render(boards_of(trials(rounds=1), trials(SLOWER, machine="m2"))))
    assert table["machines"] == ["m2", "machine"]
    few = next(row for row in table["rows"] if (row["stack"], row["machine"]) == ("fast", "machine"))
    assert few["low"] is None
    assert few["ratio"] == pytest.approx(2, rel=0.02)


def test_a_machine_that_measured_on_two_devices_has_a_column_of_each():
    gpu = moved(trials({"full": 1000, "fast": 3000}), device="cuda")
    [table] = side_by_side(boards_of(trials(), gpu, trials(SLOWER, machine="m2")))
    assert table.machines == ("m2", "machine (cpu)", "machine (cuda)")
    ratios = table.rows.query("stack == 'fast'").set_index("machine")["ratio"]
    assert ratios.to_dict() == pytest.approx({"m2": 1.5, "machine (cpu)": 2, "machine (cuda)": 3}, rel=0.02)
