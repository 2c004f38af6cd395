"""How the cost of a board's rows grows with the sequence length: exponents, complexity classes, crossovers."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from effbench.board.complexity import Support, supported
from effbench.board.lengths import COSTS, Curve, Group, groups_of, lengths_of
from effbench.board.rows import Row
from effbench.board.stats import Array, Interval, mean_interval

if TYPE_CHECKING:
    import pandas as pd

MIN_LENGTHS = 3
"""Two lengths fit any class."""
LINEAR = 1.15
"""Up to this exponent memory counts as growing no faster than the length; n log n has 1.13 over 512 to 8192 tokens."""
SCALING_COLUMNS = (
    "stack", "metric", "batch_size", "dtype", "exponent", "low", "high", "rounds", "lengths", "classes",
    "crossover", "crossover_low", "crossover_high", "crossover_words",
)  # fmt: skip
"""A row per stack, metric, batch size and dtype: the cost's exponent and its interval, where it was fitted, the rest."""
LENGTH_COLUMNS = ("stack", "metric", "batch_size", "dtype", "seq_len", "value", "ratio", "low", "high", "rounds")
"""A row per length too: the cost, and its ratio to the baseline's (below 1 is cheaper) with its interval over rounds."""
_NUMBERS = ("exponent", "crossover", "crossover_low", "crossover_high", "value", "ratio", "low", "high")


@dataclass(frozen=True)
class Scaling:
    """What a board shows along the length."""

    scaling: "pd.DataFrame"
    """Columns as SCALING_COLUMNS."""
    by_length: "pd.DataFrame"
    """Columns as LENGTH_COLUMNS."""
    notes: list[str]


@dataclass(frozen=True)
class Fit:
    """How one cost grows over the lengths it was fitted at."""

    lengths: tuple[int, ...]
    exponent: Interval
    support: Support

    @property
    def words(self) -> str:
        """The lengths."""
        return ", ".join(map(str, self.lengths))


def scaling_of(rows: Sequence[Row], bases: Mapping[str, Row | None], fit_from: int | None) -> Scaling | None:
    """Of a board's rows, each with its baseline by label; None where nothing was measured at MIN_LENGTHS lengths."""
    groups = [group for group in groups_of(rows) if _lengths(rows, group) >= MIN_LENGTHS]
    if not groups:
        return None
    fits: dict[tuple[str, str], list[Fit]] = {}
    grown: list[dict[str, Any]] = []
    by_length: list[dict[str, Any]] = []
    for row, metric, group in product(rows, COSTS, groups):
        if not lengths_of(row, metric, group):
            continue
        curve, found = Curve(row, bases[row.label], metric, group), fit(row, metric, group, fit_from or 0)
        identity = {"stack": row.label, "metric": metric, **group._asdict()}
        grown.append(identity | _columns(found) | curve.crossover().columns())
        by_length += [identity | entry for entry in curve.by_length()]
        fits.setdefault((row.label, metric), []).append(found)
    scaling, lengths = _frame(grown, SCALING_COLUMNS), _frame(by_length, LENGTH_COLUMNS)
    own = scaling[scaling["stack"].isin([row.label for row in rows if bases[row.label] is row])]
    notes = [*_fit_notes(fits, fit_from), *_memory_notes(own)]
    return Scaling(scaling, lengths, notes)


def _frame(entries: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> "pd.DataFrame":
    import pandas as pd

    # Without it, a column in which all is missing would be one of objects.
    return pd.DataFrame(entries, columns=[*columns]).astype({name: float for name in columns if name in _NUMBERS})


def _lengths(rows: Sequence[Row], group: Group) -> int:
    return len({length for row in rows for metric in COSTS for length in lengths_of(row, metric, group)})


def fit(row: Row, metric: str, group: Group, fit_from: int = 0, level: float = 0.95) -> Fit:
    """Over all lengths from `fit_from` on that the row has, in the rounds that have them all; empty below MIN_LENGTHS."""
    lengths = [length for length in lengths_of(row, metric, group) if length >= fit_from]
    if len(lengths) < MIN_LENGTHS:
        return Fit((), Interval(math.nan, None, None, 0), Support())
    logs, n = _complete_rounds(row, metric, group, lengths), np.array(lengths, dtype=float)
    x = np.log(n) - np.log(n).mean()
    return Fit(tuple(lengths), mean_interval(logs @ x / (x @ x), level), supported(n, logs))


def _complete_rounds(row: Row, metric: str, group: Group, lengths: Sequence[int]) -> Array:
    """Log costs (rounds, lengths). A round without one of the lengths would have another slope, and is left out."""
    rounds: dict[int, dict[int, list[float]]] = {}
    for trial, value in row.values.get(metric, {}).items():
        length = trial.shape.seq_len
        if value > 0 and Group.of(trial.shape) == group and length in lengths:
            rounds.setdefault(trial.round, {}).setdefault(length, []).append(math.log(value))
    complete = [logs for _, logs in sorted(rounds.items()) if len(logs) == len(lengths)]
    return np.array([[np.mean(logs[length]) for length in lengths] for logs in complete]).reshape(-1, len(lengths))


def _columns(found: Fit) -> dict[str, Any]:
    exponent = found.exponent
    numbers = {"exponent": exponent.estimate, "low": exponent.low, "high": exponent.high, "rounds": exponent.n}
    return numbers | {"lengths": found.words, "classes": found.support.words}


def _fit_notes(fits: Mapping[tuple[str, str], Sequence[Fit]], fit_from: int | None) -> Iterator[str]:
    """Over which lengths the fits are, and which are over others or missing: those are not to be compared with the rest."""
    counts = Counter(found.words for of_one in fits.values() for found in of_one if found.exponent.n)
    if not counts:
        where = f" from {fit_from} on" if fit_from else ""
        yield f"how cost grows is fitted to {MIN_LENGTHS} lengths or more{where}, all in one round: no stack has them"
        return
    [(usual, _)] = counts.most_common(1)
    yield f"how cost grows is fitted over the lengths {usual}"
    others: dict[tuple[str, str], list[str]] = {}
    for (label, metric), of_one in fits.items():
        for found in of_one:
            if found.words != usual or not found.exponent.n:
                others.setdefault((label, _where(found)), []).append(metric)
    for (label, where), metrics in others.items():
        whole = len(set(metrics)) == sum(stack == label for stack, _ in fits)
        yield f"`{label}`: {'' if whole else ', '.join(dict.fromkeys(metrics)) + ' '}{where}"


def _where(found: Fit) -> str:
    if not found.lengths:
        return f"measured at fewer than {MIN_LENGTHS} of them, so no fit"
    return f"fitted over {found.words}" if found.exponent.n else "never measured at all its lengths in one round, so no fit"


def _memory_notes(baseline: "pd.DataFrame") -> Iterator[str]:
    """That there is no order of growth to save where the baseline's own memory is linear."""
    phases = {"train.peak_memory_bytes": "training", "infer.peak_memory_bytes": "inference"}
    exponents = [
        f"{row['exponent']:.2f} in {phases[row['metric']]}"
        for row in baseline.to_dict("records")
        if row["metric"] in phases and row["high"] <= LINEAR and _at_most_log_linear(row["classes"])
    ]
    if exponents:
        yield (
            f"the baseline's own peak memory grows no faster than the length (exponent {', '.join(exponents)}): "
            "what a stack gains from growing slower, it gains in time"
        )


def _at_most_log_linear(classes: str) -> bool:
    """Not so where a large constant part hides a square: the exponent of a + b·n² is small while a is most of it."""
    return not {"constant", "n", "n log n"}.isdisjoint(classes.removeprefix("≈ ").split(", "))
