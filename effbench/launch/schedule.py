"""Which trials a run still needs, round by round, in an order that a recorded seed shuffles."""

import random
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from effbench.plan.plan import Plan
from effbench.plugin.cell import Cell, canonical_json
from effbench.plugin.errors import InputError


class Part(NamedTuple):
    """What of a suite a session measures; all of it unless something is named."""

    round: int | None = None
    world_size: int | None = None

    def check(self, plan: Plan) -> None:
        """InputError where there is no such part."""
        sizes = sorted({cell.world_size for cell in (*plan.cells, *(skip.cell for skip in plan.skips))})
        if self.world_size is not None and self.world_size not in sizes:
            raise InputError(f"no cell has world size {self.world_size}: this suite has {', '.join(map(str, sizes))}")

    def rounds(self, count: int) -> range:
        """Those of so many rounds that belong to it."""
        return range(1, count + 1) if self.round is None else range(self.round, self.round + 1)

    def cells(self, plan: Plan) -> set[str] | None:
        """Ids of the cells that belong to it, for `turns`; None for all."""
        return None if self.world_size is None else {cell.id for cell in plan.cells if cell.world_size == self.world_size}


WHOLE = Part()


class Turn(NamedTuple):
    """One trial to run."""

    round: int
    cell: Cell
    again: bool = False
    """Another session has measured it, or the session of its own part will; this record is written beside that one."""


Sessions = Mapping[tuple[str, int], Collection[str]]
"""(cell id, round) → the sessions that have a record of it."""


def turns(
    plan: Plan, rounds: range, measured: Sessions, only: Collection[str] | None = None, lost: Collection[str] = ()
) -> Iterator[Turn]:
    """What these rounds still need of the plan's cells, or of those in `only`.

    Ratios are paired within a session, so a stack stands in a round once one session has measured both it and its baseline,
    and of a parallel stack the serial one. Where none has, because a run was cut in two or a baseline is tried again, all of
    them are measured, again if need be.
    Cells in `lost`, which will not be launched, have nothing to be paired with: they get a turn of their own, to be recorded.
    """
    cells = {cell.id: cell for cell in plan.cells}
    own = cells if only is None else only
    baselines, serial = _baselines(cells, plan.suite.baseline), _serial(cells)
    partners = {
        name: [] if name in lost else [partner for partner in baselines[name] + serial[name] if partner not in lost]
        for name in cells
    }
    for number in rounds:
        order = sorted(name for name, cell in cells.items() if number <= plan.rounds(cell, number))
        random.Random(f"{plan.suite.seed}:{number}").shuffle(order)  # noqa: S311 - an order, not a secret
        wanted: set[str] = set()
        for name in (name for name in order if name in own):
            pair = (name, *partners[name])
            if not set.intersection(*(set(measured.get((member, number), ())) for member in pair)):
                wanted.update(pair)
        for name in (name for name in order if name in wanted):
            yield Turn(number, cells[name], again=name not in own or bool(measured.get((name, number))))


def _baselines(cells: Mapping[str, Cell], baseline: str) -> dict[str, list[str]]:
    """By cell id, the cells it is compared with: on as many ranks, or on one where the baseline exists on one alone."""
    by_comparison: dict[tuple[object, ...], list[str]] = defaultdict(list)
    for name, cell in cells.items():
        if cell.stack == baseline:
            by_comparison[_comparison(cell)].append(name)
    return {
        name: []
        if cell.stack == baseline
        else [p for p in by_comparison[_comparison(cell)] if cells[p].world_size in (1, cell.world_size)]
        for name, cell in cells.items()
    }


def _serial(cells: Mapping[str, Cell]) -> dict[str, list[str]]:
    """By cell id, the same stack without its parallel techniques on a single rank, or itself on one where that is missing."""
    single: dict[tuple[object, ...], list[str]] = defaultdict(list)
    for name, cell in cells.items():
        if cell.world_size == 1:
            single[_comparison(cell), canonical_json(cell.techniques)].append(name)
    found = {}
    for name, cell in cells.items():
        same, itself = (single.get((_comparison(cell), canonical_json(t)), []) for t in (cell.serial, cell.techniques))
        found[name] = [other for other in same or itself if other != name] if cell.parallel else []
    return found


def _comparison(cell: Cell) -> tuple[object, ...]:
    """What a cell and its baseline's share, but for the world size."""
    return cell.model, cell.workload, cell.seq_len, cell.paired_batch, cell.dtype
