"""Which cells get further rounds."""

from pathlib import Path

import numpy as np

from effbench.board.clarity import LOOKS, next_look, unclear
from effbench.board.frame import tidy
from effbench.board.leaderboard import build
from tests.records import make_cell, make_record

SETTINGS = {"baseline": "full", "delta": 0.03}


def cell_of(stack, **changes):
    return make_cell(stack, techniques=() if stack == "full" else ((stack, {}),), **changes)


def boards_and_cells(noise, rounds=3, **changes):
    """Stack → standard deviation of its log speed around twice the baseline's."""
    rng, records = np.random.default_rng(0), []
    cells = [cell_of(stack, seq_len=n, **changes) for stack in ("full", *noise) for n in (64, 128)]
    for number in range(1, rounds + 1):
        for cell in cells:
            speed = 1000 if cell.stack == "full" else 2000 * np.exp(rng.normal(0, noise[cell.stack]))
            records.append(make_record(cell=cell, round_number=number, tokens_per_s=speed))
    return build(tidy((Path("x.json"), record) for record in records), SETTINGS), cells


def stacks_of(ids, cells):
    return sorted((cell.stack, cell.seq_len) for cell in cells if cell.id in ids)


def test_unclear_rows_and_their_baseline_go_on_at_every_shape():
    boards, cells = boards_and_cells({"steady": 0.001, "noisy": 0.5})
    found = stacks_of(unclear(boards, cells), cells)
    assert found == [("full", 64), ("full", 128), ("noisy", 64), ("noisy", 128)]


def test_nothing_goes_on_when_all_is_clear():
    boards, cells = boards_and_cells({"steady": 0.001})
    assert unclear(boards, cells) == set()


def test_every_row_is_unclear_before_the_first_look():
    boards, cells = boards_and_cells({"steady": 0.001}, rounds=2)
    assert unclear(boards, cells) == {cell.id for cell in cells}


def test_a_row_of_an_option_axis_is_found_by_its_value():
    boards, cells = boards_and_cells({"lora": 1.5}, option_axes={"lora.rank": 4})
    other = cell_of("lora", option_axes={"lora.rank": 8})
    assert {cell.stack for cell in cells if cell.id in unclear(boards, [*cells, other])} == {"full", "lora"}
    assert other.id not in unclear(boards, [*cells, other])


def test_a_row_without_figures_is_not_worth_another_round():
    boards, cells = boards_and_cells({"steady": 0.001})
    lost = cell_of("lost")
    assert lost.id not in unclear(boards, [*cells, lost])


def dirtied(record):
    return record.model_copy(update={"dirty": "other programs used 1.2 cores"})


def board_of(records):
    return build(tidy((Path("x.json"), record) for record in records), SETTINGS)


def test_a_row_whose_trials_were_all_disturbed_goes_on():
    cells = [cell_of("full"), cell_of("busy"), cell_of("lost")]
    records = [make_record(cell=cells[0], round_number=n) for n in (1, 2, 3)]
    records += [dirtied(make_record(cell=cells[1], round_number=n)) for n in (1, 2, 3)]
    records += [make_record(cell=cells[2], round_number=n, status="crashed", metrics={}, quality=None) for n in (1, 2, 3)]
    assert stacks_of(unclear(board_of(records), cells), cells) == [("busy", 64), ("full", 64)]


def test_a_disturbed_baseline_goes_on_with_what_waits_for_it():
    cells = [cell_of("full"), cell_of("steady")]
    records = [dirtied(make_record(cell=cells[0], round_number=n)) for n in (1, 2, 3)]
    records += [make_record(cell=cells[1], round_number=n) for n in (1, 2, 3)]
    assert unclear(board_of(records), cells) == {cell.id for cell in cells}


def test_nothing_goes_on_against_a_baseline_that_always_fails():
    cells = [cell_of("full"), cell_of("steady")]
    records = [make_record(cell=cells[0], round_number=n, status="oom", metrics={}, quality=None) for n in (1, 2, 3)]
    records += [make_record(cell=cells[1], round_number=n) for n in (1, 2, 3)]
    assert unclear(board_of(records), cells) == set()


def records_of(cells, speed):
    return [make_record(cell=c, round_number=n, tokens_per_s=speed(c, n)) for c in cells for n in (1, 2, 3)]


def test_a_stack_measured_with_another_learning_rate_before_is_still_found():
    full, before, now = cell_of("full"), cell_of("lora", lr=1e-3), cell_of("lora", lr=5e-3)
    speeds = {1: 700.0, 2: 1000.0, 3: 1500.0}
    records = records_of([full, before, now], lambda c, n: 1000.0 if c.stack == "full" else speeds[n])
    assert unclear(board_of(records), [full, now]) == {full.id, now.id}


def test_a_board_of_other_settings_makes_nothing_go_on():
    before = [cell_of("full", steps=4), cell_of("lora", steps=4)]
    now = [cell_of("full", steps=9), cell_of("lora", steps=9)]
    speeds = {1: 700.0, 2: 1000.0, 3: 1500.0}

    def speed(cell, number):
        if cell.stack == "full":
            return 1000.0
        return speeds[number] if cell.steps == 4 else 2000.0 + number

    boards = board_of(records_of([*before, *now], speed))
    assert unclear(boards, now) == set()
    assert unclear(boards, before) == {cell.id for cell in before}


def test_a_larger_world_size_takes_the_baseline_at_a_single_rank_along():
    full, ddp = cell_of("full"), cell_of("ddp", world_size=2)
    speeds = {1: 700.0, 2: 1000.0, 3: 1500.0}
    records = records_of([full, ddp], lambda c, n: 1000.0 if c.stack == "full" else speeds[n])
    assert unclear(board_of(records), [full, ddp]) == {full.id, ddp.id}


def test_looks():
    assert [next_look(n) for n in (0, 2, 3, 4, 12, 20)] == [LOOKS[0], 3, 5, 5, 20, None]
