"""What a reader asks of leaderboards: which trials, in which slices, which of the rows and in which order."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from effbench.board.expression import Expression
from effbench.board.frame import METRIC_COLUMNS, TRIAL_COLUMNS
from effbench.plugin.errors import InputError, unknown

if TYPE_CHECKING:
    import pandas as pd

_AXES = (
    "machine", "suite", "model", "workload", "seq_len", "batch_size", "world_size", "dtype", "device", "threads", "scaling",
    "session", "round",
)  # fmt: skip
_PAIRED = [
    "machine", "suite", "model", "workload", "methodology", "weights", "device", "settings", "seq_len", "paired_batch",
    "dtype", "session", "round",
]  # fmt: skip
"""What a trial and its baseline's share, beside the world size."""


@dataclass(frozen=True)
class View:
    """What to show of all that was measured; nothing given shows it all."""

    where: Expression | None = None
    """On names of axes it chooses trials before anything is compared, on columns of boards it chooses rows afterwards."""
    by: tuple[str, ...] = ()
    """Axes of which each value gets boards of its own."""
    aggregate: bool = False
    """One board for each suite and machine, over all models and workloads."""
    sort: str = ""
    """A column, `:desc` behind it for the largest first."""

    def trials(self, axes: Iterable[str]) -> list[Expression]:
        """The parts of `where` that are about axes; InputError for a part that is about both and cannot be split."""
        known = {*axes}
        for part in self._parts():
            ours, others = sorted(part.names & known), sorted(part.names - known)
            if ours and others:
                raise InputError(
                    f"filter {part.text!r}: {', '.join(ours)} chooses trials before they are compared, {', '.join(others)} "
                    "rows afterwards; join such conditions by `and` alone"
                )
            if not part.names:
                raise InputError(f"filter {part.text!r} names nothing that differs between trials or rows")
        return [part for part in self._parts() if part.names <= known]

    def rows(self, axes: Iterable[str]) -> list[Expression]:
        """The parts that are about columns of boards."""
        return [part for part in self._parts() if not part.names <= {*axes}]

    def _parts(self) -> list[Expression]:
        return self.where.parts() if self.where else []


EVERYTHING = View()


def axes_of(frame: "pd.DataFrame") -> list[str]:
    """Names that trials can be chosen by: what a cell stands at, `lora.rank` and other options of techniques among it."""
    options = [name for name in map(str, frame.columns) if "." in name and name not in (*TRIAL_COLUMNS, *METRIC_COLUMNS)]
    return [*_AXES, *options]


def choose(frame: "pd.DataFrame", view: View, is_baseline: "pd.Series[bool]") -> "pd.DataFrame":
    """The trials that the view is of, and the baseline's that they are compared with."""
    axes = axes_of(frame)
    for axis in view.by:
        if axis not in axes:
            raise unknown("axis", axis, axes)
    for part in view.trials(axes):
        frame = _with_baseline(frame, part.mask(frame), is_baseline.loc[frame.index])
    return frame


def slices(
    frame: "pd.DataFrame", by: Sequence[str], is_baseline: "pd.Series[bool]"
) -> "Iterator[tuple[dict[str, str], pd.DataFrame]]":
    """One part for each value of the axes; of an axis that no trial has, the whole."""
    if not by:
        yield {}, frame
        return
    axis, *others = by
    values = frame[axis].astype(object).map(_label)
    for value in sorted(values.dropna().unique(), key=_order) or [None]:
        part = frame if value is None else _with_baseline(frame, values == value, is_baseline.loc[frame.index])
        own = {} if value is None else {axis: value}
        for further, smaller in slices(part, others, is_baseline):
            yield own | further, smaller


def _with_baseline(frame: "pd.DataFrame", wanted: "pd.Series[bool]", is_baseline: "pd.Series[bool]") -> "pd.DataFrame":
    """These trials, and the baseline's at the same shape, round and session whatever its own axes are.

    So a baseline without an option is that of every value of it. One that only stands at a smaller world size is marked
    `beside`: larger ones are compared with it, and it makes no board of its own.
    """
    import pandas as pd

    wanted = wanted & ~frame.get("beside", pd.Series(False, index=frame.index))
    pairs, ranks = pd.MultiIndex.from_frame(frame[_PAIRED]), pd.MultiIndex.from_frame(frame[[*_PAIRED, "world_size"]])
    partner = is_baseline & pairs.isin(pairs[wanted])
    alike = pd.Series(ranks.isin(ranks[wanted]), index=frame.index)
    kept = frame[wanted | partner]
    return kept.assign(beside=~(wanted | (partner & alike)).loc[kept.index])


def _label(value: Any) -> str | None:
    """As it is written in a suite: an axis that some trials lack holds its whole numbers as floats."""
    if value is None or value != value:  # noqa: PLR0124 - NaN
        return None
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _order(label: str) -> tuple[bool, float, str]:
    """Numbers before text."""
    try:
        return (False, float(label), "")
    except ValueError:
        return (True, 0.0, label)


def present(rows: "pd.DataFrame", view: View, axes: Iterable[str]) -> "tuple[pd.DataFrame, list[str]]":
    """The rows that the view shows, in its order, and what a reader must know of that. Ranks stay those of the whole board."""
    values = rows.assign(rank=rows["rank"].map(_best_rank).astype(float))
    conditions = view.rows(axes)
    shown = values
    for condition in conditions:
        shown = shown[condition.mask(shown)]
    if view.sort:
        column, descending = sort_key(view.sort)
        if column in shown:
            shown = shown.sort_values(column, ascending=not descending, na_position="last", kind="stable", key=_sortable)
    hidden = len(rows) - len(shown)
    text = " and ".join(condition.text for condition in conditions)
    notes = [f"{hidden} of {len(rows)} rows are hidden ({text}); ranks and verdicts are those of all"] if hidden else []
    return rows.loc[shown.index].reset_index(drop=True), notes


def sort_key(text: str) -> tuple[str, bool]:
    """`COLUMN`, `COLUMN:asc` or `COLUMN:desc` as the column and whether the largest comes first."""
    column, _, direction = text.partition(":")
    if direction not in ("", "asc", "desc"):
        raise InputError(f"--sort {text}: expected COLUMN, COLUMN:asc or COLUMN:desc")
    return column, direction == "desc"


def check_columns(view: View, axes: Iterable[str], boards: Sequence["pd.DataFrame"]) -> None:
    """InputError for a name that is neither an axis nor a column of any of these boards."""
    columns = {str(name) for rows in boards for name in rows.columns}
    if not columns:
        return
    for part in view.rows(axes):
        for name in sorted(part.names - columns):
            raise unknown("name in the filter", name, {*axes, *columns})
    if view.sort and (name := sort_key(view.sort)[0]) not in columns:
        raise unknown("column to sort by", name, columns)


def _best_rank(rank: Any) -> float | None:
    """A range counts as its best place."""
    return float(rank.partition("–")[0]) if isinstance(rank, str) else None


def _sortable(column: "pd.Series[Any]") -> "pd.Series[Any]":
    return column if column.dtype.kind in "fiu" else column.map(lambda value: None if value is None else str(value))
