"""Two sets of records against each other, cell by cell: what became slower, larger or worse, or stopped working."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from effbench.board.changes import PAIRED, ROUNDS, Entry, Same, measured, scored
from effbench.board.measures import MEASURES
from effbench.board.settings import Settings
from effbench.board.sides import Pair, Point, pairs, references, side_of
from effbench.board.verdict import AMOUNT, QUALITY, SIZE, SPEED

if TYPE_CHECKING:
    import pandas as pd

FAILS = "FAILS"
"""Ended well in OLD, and in no trial of NEW."""
RUNS = "RUNS"
"""The reverse."""
REGRESSIONS = (FAILS, SPEED.bad, QUALITY.bad, SIZE.bad)
IMPROVEMENTS = (RUNS, SPEED.good, QUALITY.good, SIZE.good)
COLUMNS = [
    "machine", "suite", "model", "workload", "stack", "shape", "cell",
    "metric", "old", "new", "ratio", "low", "high", "verdict", "over", "old_rounds", "new_rounds", "reason",
]  # fmt: skip
_COMPARED = tuple(measure for measure in MEASURES if measure.words != AMOUNT)  # a loss is neither good nor bad by itself
_MARGIN = Settings().delta


class Margins(NamedTuple):
    """From where on a change counts, as fractions: bounds of the ratio are 1 + m and 1 / (1 + m), as on boards."""

    speed: float = _MARGIN
    quality: float = _MARGIN
    size: float = _MARGIN


@dataclass(frozen=True)
class Comparison:
    """What two sets of records say about each other."""

    rows: "pd.DataFrame"
    """One per cell and metric, columns as `COLUMNS` says: `ratio` is new / old with its plain 95 % interval, the verdict rests
    on the adjusted one, `over` says what both are over. Where nothing is compared there is a `reason` and no ratio; what
    concerns a whole cell has no metric."""
    margins: Margins
    relative: bool
    """Whether speeds are ratios to each side's own baseline."""
    notes: list[str]

    @property
    def verdicts(self) -> Counter[str]:
        """How many there are of each."""
        return Counter(self.rows["verdict"].dropna())

    @property
    def compared(self) -> int:
        """Cells of which some metric was."""
        return len(self.rows.loc[self.rows["ratio"].notna(), ["machine", "cell"]].drop_duplicates())

    def with_verdict(self, *words: str) -> "pd.DataFrame":
        """The rows that have one of these, in the order of the words."""
        rows = self.rows[self.rows["verdict"].isin(words)]
        return rows.sort_values("verdict", key=lambda column: column.map(words.index), kind="stable")


def compare_frames(
    old: "pd.DataFrame", new: "pd.DataFrame", margins: Margins | None = None, *, relative: bool = False
) -> Comparison:
    """Compare what `load` gave of two versions of the code, or states of a machine; within each the newest code of a cell.

    `relative` divides each speed by that of its own side's baseline in the same round. It takes out what changed for all stacks
    alike: the machine's mood, and also the code that all share.
    """
    import pandas as pd

    margins = margins or Margins()
    sides = side_of(old), side_of(new)
    same: list[Same] = []
    entries: list[Entry] = []
    for pair in pairs(*sides):
        found = _same_or_reason(pair)
        if isinstance(found, Same):
            same.append(found)
        else:
            entries.append(found)
    bases = references(sides[0]) | references(sides[1]) if relative else None
    for measure in _COMPARED:
        speed = measure.words == SPEED
        entries += measured(same, measure, margins.speed if speed else margins.size, bases if speed else None)
    for metric in sorted({metric for cell in same for metric in _scores(cell)}):
        entries += scored(same, metric, margins.quality)
    rows = pd.DataFrame(entries, columns=COLUMNS)
    notes = [*_shift_notes(rows, relative), *_code_notes(same), *_trial_notes(same)]
    return Comparison(rows, margins, relative, notes)


def _same_or_reason(pair: Pair) -> Same | Entry:
    """The comparable cell; or, where its figures are not compared, what there is to say."""
    old, new, reason = pair
    if old is None or new is None:
        return _named(old or new) | {"reason": reason}
    entry = _named(new)
    before, after = old.lost, new.lost
    if old.cell != new.cell or bool(before) == bool(after):
        if before and after:
            reason = reason or f"no finished trial on either side: {before[0]}, then {after[0]}"
        return entry | {"reason": reason} if reason else Same(old, new, entry)
    status, error = before or after or ("", "")
    said = f"{status}: {error}" if error else status
    if status == "skipped":  # it was not tried, which is no failure
        return entry | {"reason": f"{'OLD' if before else 'NEW'}: {said}"}
    return entry | {"verdict": RUNS if before else FAILS, "reason": said}


def _named(point: Point | None) -> dict[str, Any]:
    if point is None:
        raise ValueError("neither side has the cell")
    facts = point.facts
    ranks = f" w{facts['world_size']}" if facts["world_size"] > 1 else ""
    shape = f"s{facts['seq_len']} b{facts['batch_size']}{ranks} {facts['dtype']}"
    named = {name: facts[name] for name in ("machine", "suite", "model", "workload")}
    return named | {"stack": point.row.label, "shape": shape, "cell": point.cell}


def _scores(cell: Same) -> Iterator[str]:
    return (metric for point in (cell.old, cell.new) for metric in point.row.values if metric.startswith("quality."))


def _shift_notes(rows: "pd.DataFrame", relative: bool) -> Iterator[str]:
    """What all cells have in common, which no interval over rounds of other sessions tells from a change of the code."""
    speeds = [measure.metric for measure in _COMPARED if measure.words == SPEED]
    for metric, own in rows[rows["metric"].isin(speeds) & (rows["over"] != PAIRED)].groupby("metric", sort=False):
        ratios = own["ratio"].dropna()
        if len(ratios):
            yield f"{metric}: the median ratio of {len(ratios)} cells is {ratios.median():.3f}"
    if (rows["over"] == ROUNDS).any():
        advice = "" if relative else "; `--relative` takes out what all stacks share"
        yield (
            "old and new were measured in different sessions, fewer than three on a side: intervals are over rounds, and do "
            f"not cover how the machine differed from one session to the next{advice}"
        )


def _code_notes(cells: Sequence[Same]) -> Iterator[str]:
    count = sum(cell.old.facts["fingerprint"] == cell.new.facts["fingerprint"] for cell in cells)
    if count:
        yield f"{count} of {len(cells)} cells are of the same code and libraries on both sides: what differs is the machine"
    shared = sum(_shares_trials(cell) for cell in cells)
    if shared:
        yield f"{shared} of {len(cells)} cells have trials that are the very same on both sides: they say nothing of a change"


def _shares_trials(cell: Same) -> bool:
    """Whether a timing is the same to its last digit: no two measurements are."""
    speeds = [measure.metric for measure in _COMPARED if measure.words == SPEED]
    return any(cell.old.logs(metric).items() & cell.new.logs(metric).items() for metric in speeds)


def _trial_notes(cells: Sequence[Same]) -> Iterator[str]:
    """What ended badly beside trials that ended well."""
    for cell in cells:
        for side, point in (("OLD", cell.old), ("NEW", cell.new)):
            trials = [status for of_shape in point.row.statuses.values() for status, _ in of_shape]
            lost = Counter(status for status in trials if status != "ok")
            for status, count in lost.items():
                yield f"{count} of {len(trials)} trials of {point.cell} in {side}: {status}"
            if point.row.dirty:
                yield f"{len(point.row.dirty)} of {len(trials)} trials of {point.cell} in {side}: timings left out, disturbed"
