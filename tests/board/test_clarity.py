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


def test_looks():
    assert [next_look(n) for n in (0, 2, 3, 4, 12, 20)] == [LOOKS[0], 3, 5, 5, 20, None]
