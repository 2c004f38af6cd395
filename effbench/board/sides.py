"""Two sets of records cell by cell: which cells can be compared, and why the others cannot."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from effbench.board.leaderboard import current
from effbench.board.rows import Row, rows_of
from effbench.board.settings import settings_of

if TYPE_CHECKING:
    import pandas as pd

Logs = dict[tuple[str, int], float]
"""Natural logarithm of a value, by session and round."""
_POINT = ("suite", "stack", "model", "workload", "seq_len", "batch_size", "world_size", "dtype", "options")
"""Where a cell stands in its suite, whatever its settings are."""
_MUST_AGREE = ("methodology", "weights", "device", "settings")
_REFERENCE = ("machine", "suite", "model", "workload", "seq_len", "paired_batch", "dtype", *_MUST_AGREE)
"""What a cell and its baseline share."""
_FACTS = list(dict.fromkeys([*_POINT, *_REFERENCE, "variant", "fingerprint"]))


@dataclass(frozen=True, eq=False)  # told apart by identity
class Point:
    """A cell as one side has it, in the newest code that the side has of it."""

    cell: str
    facts: Mapping[str, Any]
    row: Row
    """Of this cell alone."""
    is_baseline: bool

    @property
    def lost(self) -> tuple[str, str] | None:
        """(status, error) where no trial ended well."""
        return next(iter(self.row.lost().values()), None)

    def logs(self, metric: str, reference: "Point | None" = None) -> Logs:
        """Of its good, undisturbed trials; as ratios to those of the reference in the same round, where one is given."""
        mine = _finite(self.row, metric)
        if reference is None:
            return mine
        theirs = _finite(reference.row, metric)
        return {trial: mine[trial] - theirs[trial] for trial in mine.keys() & theirs.keys()}


class Pair(NamedTuple):
    """The same cell on both sides; None where a side lacks it, or has it in another form than the other."""

    old: Point | None
    new: Point | None
    reason: str = ""
    """Why the two must not be compared."""


Side = dict[tuple[str, str], Point]
"""By machine and cell id."""


def side_of(frame: "pd.DataFrame") -> Side:
    """Every cell of a frame that `load` made."""
    found: Side = {}
    if frame.empty:
        return found
    newest = current(frame)[0]
    for _, suite in newest.groupby(["machine", "suite"], sort=True):
        baseline = settings_of(suite, None)[0].baseline
        for (machine, cell), own in suite.groupby(["machine", "cell_id"], sort=True):
            first = own.iloc[0]
            untouched = first["techniques"] == "untouched"
            is_baseline = first["stack"] == baseline if baseline else untouched
            facts = {name: first[name] for name in _FACTS}
            found[str(machine), str(cell)] = Point(str(cell), facts, rows_of(own)[0], bool(is_baseline))
    return found


def pairs(old: Side, new: Side) -> Iterator[Pair]:
    """Every cell of both sides once, with the reason where there is nothing to compare."""
    for key in [key for key in old if key in new]:
        yield Pair(old[key], new[key], _disagreement(old[key], new[key]))
    left = {key: new[key] for key in new if key not in old}
    standing = {_place(point): key for key, point in left.items()}
    elsewhere = {cell: (machine, cell) for machine, cell in left}
    for key in [key for key in old if key not in new]:
        mine = old[key]
        theirs = left.pop(standing.get(_place(mine), key), None)
        moved = None if theirs else left.pop(elsewhere.get(mine.cell, key), None)
        if theirs:
            yield Pair(mine, theirs, _disagreement(mine, theirs) or _change(mine, theirs))
        elif moved:
            yield Pair(mine, moved, f"measured on other machines: {key[0]}, then {moved.facts['machine']}")
        else:
            yield Pair(mine, None, "only in OLD")
    for point in left.values():
        yield Pair(None, point, "only in NEW")


def references(side: Side) -> dict[Point, Point | None]:
    """The baseline's cell that each cell is measured against on its own side, as on boards; None where there is none.

    A baseline without the cell's option is the one of every value, and one on a single rank serves where there is none of as
    many; of several the one that shares most trials.
    """
    baselines = [point for point in side.values() if point.is_baseline]
    return {point: _reference(point, baselines) for point in side.values()}


def _reference(point: Point, baselines: Sequence[Point]) -> Point | None:
    trials = _trials(point)
    fitting = [
        other
        for other in baselines
        if all(other.facts[name] == point.facts[name] for name in _REFERENCE)
        and other.facts["world_size"] in (1, point.facts["world_size"])
        and other.row.options.items() <= point.row.options.items()
    ]
    return max(fitting, key=lambda other: (other.facts["world_size"], len(trials & _trials(other))), default=None)


def _finite(row: Row, metric: str) -> Logs:
    values = row.values.get(metric, {})
    return {(t.session, t.round): math.log(value) for t, value in values.items() if value > 0 and math.isfinite(value)}


def _trials(point: Point) -> set[Any]:
    return {trial for values in point.row.values.values() for trial in values}


def _place(point: Point) -> tuple[Any, ...]:
    """Where it stands in its suite on its machine."""
    return tuple(point.facts[name] for name in ("machine", *_POINT))


def _disagreement(old: Point, new: Point) -> str:
    """What must be the same on both sides and is not."""
    changed = [name for name in _MUST_AGREE if old.facts[name] != new.facts[name]]
    return "; ".join(f"other {name}: {old.facts[name]}, then {new.facts[name]}" for name in changed)


def _change(old: Point, new: Point) -> str:
    """Why a stack at the same point is another cell."""
    if old.facts["variant"] != new.facts["variant"]:
        return "other techniques, options or learning rate: another cell"
    return "another cell: its phases or its model's shape changed"
