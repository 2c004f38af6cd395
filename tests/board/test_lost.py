"""What boards say of cells that ran out of memory, that were not launched for it, or that lack a phase."""

from tests.board.test_leaderboard import board_of, rows_of, trials
from tests.records import make_record


def _ending(records, lost):
    """The records, those of `fast` changed to what `lost` says of their round and seq_len."""
    for record in records:
        status = lost.get((record.round, record.cell.seq_len)) if record.cell.stack == "fast" else None
        made_up = {"status": status, "error": f"the reason of {status}", "metrics": {}, "quality": None}
        yield make_record(cell=record.cell, round_number=record.round, **made_up) if status else record


def test_a_cell_that_ran_out_of_memory_still_says_so_when_later_rounds_left_it_out():
    lost = {(1, 128): "oom", (2, 128): "skipped", (3, 128): "skipped"} | {(n, 256): "skipped" for n in (1, 2, 3)}
    board = board_of(_ending(trials(shapes=(64, 128, 256)), lost))
    assert rows_of(board).loc["fast", "status"] == "1 oom, 1 skipped"
    assert rows_of(board).loc["fast", "cells"] == "1/3"
    assert rows_of(board).loc["full", "status"] == "ok"
    assert [note for note in board.notes if "`fast`" in note] == [
        "1 of 3 cells of `fast`: oom (the reason of oom)",
        "1 of 3 cells of `fast`: skipped (the reason of skipped)",
    ]
    assert "train: compared on 1 of 3 cells, those that all stacks completed" in board.notes


def test_a_cell_that_went_well_before_it_ran_out_of_memory_counts_trials():
    board = board_of(_ending(trials(), {(2, 64): "oom", (3, 64): "skipped"}))
    assert rows_of(board).loc["fast", "status"] == "ok"
    assert {
        "1 of 3 trials of `fast`: oom (the reason of oom)",
        "1 of 3 trials of `fast`: skipped (the reason of skipped)",
    } <= set(board.notes)


def test_a_phase_that_only_the_largest_cells_lack_is_not_called_skipped_everywhere():
    reason = "predicted to need 34 GiB, the limit is 24 GiB"

    def without_training(record):
        metrics = {name: summary for name, summary in record.metrics.items() if not name.startswith("train.")}
        return record.model_copy(update={"phases": record.phases | {"train": f"skipped: {reason}"}, "metrics": metrics})

    records = [without_training(r) if r.cell.seq_len == 128 else r for r in trials(shapes=(64, 128))]
    assert f"`full`: train skipped at 1 of 2 cells: {reason}" in board_of(records).notes
    records = [without_training(r) for r in trials()]
    assert f"`full`: train skipped: {reason}" in board_of(records).notes
