"""Which trials a run still needs, round by round, in an order that a recorded seed shuffles."""

import random
from collections.abc import Collection, Iterator
from typing import NamedTuple

from effbench.plan.plan import Plan
from effbench.plugin.cell import Cell


class Turn(NamedTuple):
    """One trial to run."""

    round: int
    cell: Cell
    again: bool = False
    """Measured already, in another session: ratios are paired within a session, so the baseline is measured anew beside a
    stack that is still missing in this round, and both records stay."""


def turns(plan: Plan, rounds: range, done: Collection[tuple[str, int]], only: Collection[str] | None = None) -> Iterator[Turn]:
    """What is missing of these rounds, or of the cells in `only`. `done`: (cell id, round) of records of other sessions."""
    for number in rounds:
        order = sorted(plan.cells, key=lambda cell: cell.id)
        random.Random(f"{plan.suite.seed}:{number}").shuffle(order)  # noqa: S311 - an order, not a secret
        missing = [cell for cell in order if (cell.id, number) not in done and (only is None or cell.id in only)]
        partners = {_comparison(cell) for cell in missing if cell.stack != plan.suite.baseline}
        for cell in order:
            if cell in missing:
                yield Turn(number, cell)
            elif cell.stack == plan.suite.baseline and _comparison(cell) in partners and (cell.id, number) in done:
                yield Turn(number, cell, again=True)


def _comparison(cell: Cell) -> tuple[object, ...]:
    """What a cell and its baseline's share; the world size may differ, for a baseline that exists on one rank alone."""
    return cell.model, cell.workload, cell.seq_len, cell.paired_batch, cell.dtype
