"""A row's cost against its baseline's at each sequence length, and the length from which it is at least as cheap."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from effbench.board.rows import Row, Shape, log_ratios
from effbench.board.stats import Interval, ratio_interval

COSTS = (
    "train.step_s",
    "infer.prefill_s",
    "infer.decode_token_s",
    "train.peak_memory_bytes",
    "infer.peak_memory_bytes",
)
"""What grows with the length: forward + backward + update, the forward pass, a generated token, and the two memory peaks."""
EVERYWHERE = 0.0
"""Stands for a crossover at or below the shortest length, as infinity does for one beyond the longest."""


class Group(NamedTuple):
    """What the cells share whose costs are followed along the length."""

    batch_size: int
    dtype: str

    @classmethod
    def of(cls, shape: Shape) -> "Group":
        """The one that a shape belongs to."""
        return cls(shape.batch_size, shape.dtype)

    def at(self, seq_len: int) -> Shape:
        """Its shape of this length."""
        return Shape(seq_len, self.batch_size, self.dtype)


def groups_of(rows: Iterable[Row]) -> list[Group]:
    """Every batch size and dtype by itself: costs of different ones are not points of one curve."""
    return sorted({Group.of(shape) for row in rows for metric in COSTS for shape in row.shapes(metric)})


def lengths_of(row: Row | None, metric: str, group: Group) -> list[int]:
    """The lengths at which a row has the metric."""
    shapes = row.shapes(metric) if row else ()
    return sorted(shape.seq_len for shape in shapes if Group.of(shape) == group)


@dataclass(frozen=True)
class Curve:
    """One cost of a row along the length, beside its baseline's."""

    row: Row
    base: Row | None
    metric: str
    group: Group

    @cached_property
    def ratios(self) -> dict[int, Interval]:
        """Row / baseline at each length that both measured in one session, with its t interval over rounds."""
        if self.base is None or self.base is self.row:
            return {}
        common = {*lengths_of(self.row, self.metric, self.group)} & {*lengths_of(self.base, self.metric, self.group)}
        found = {n: ratio_interval(log_ratios(self.row, self.base, self.metric, {self.group.at(n)})) for n in sorted(common)}
        return {length: interval for length, interval in found.items() if interval.n}

    def by_length(self) -> Iterator[dict[str, Any]]:
        """The cost at each length, and its ratio to the baseline's."""
        for length in lengths_of(self.row, self.metric, self.group):
            value = self.row.mean(self.metric, {self.group.at(length)})
            own = len({t.round for t in self.row.values[self.metric] if t.shape == self.group.at(length)})
            ratio = Interval(1.0, None, None, own) if self.base is self.row else self.ratios.get(length)
            shown = (
                {"ratio": ratio.estimate, "low": ratio.low, "high": ratio.high, "rounds": ratio.n} if ratio else {"rounds": 0}
            )
            yield {"seq_len": length, "value": value} | shown

    def crossover(self) -> "Crossover":
        """Where the row becomes at least as cheap as its baseline."""
        if self.base is self.row:
            return Crossover(math.nan, None, None, "baseline")
        mine, theirs = (lengths_of(row, self.metric, self.group) for row in (self.row, self.base))
        if not self.ratios:
            return Crossover(math.nan, None, None, "no length in common" if theirs else "baseline not measured")
        return crossover(self.ratios, beyond=_beyond(max(self.ratios), mine, theirs))


@dataclass(frozen=True)
class Crossover:
    """The length from which a row is at least as cheap, EVERYWHERE or infinite where none of the measured ones is that."""

    estimate: float
    low: float | None
    high: float | None
    words: str

    def columns(self) -> dict[str, Any]:
        """Missing is what was not found within the measured lengths; the words say on which side of them it is."""
        keys = ("crossover", "crossover_low", "crossover_high")
        ends = (self.estimate, self.low, self.high)
        return {key: end if end and math.isfinite(end) else None for key, end in zip(keys, ends, strict=True)} | {
            "crossover_words": self.words
        }


def crossover(found: Mapping[int, Interval], beyond: str = "") -> Crossover:
    """Where the ratio falls to 1 and stays there up to the longest length, linear in log ratio and log length between two.

    The interval's ends are where the lower and the upper limits of the ratios do the same, so an end is open where the rounds
    leave it so: an upper limit above 1 at the longest length does not exclude that there is no crossover.
    """
    lengths = sorted(found)
    estimate = _crossing(lengths, [found[n].estimate for n in lengths])
    lows = [low for n in lengths if (low := found[n].low) is not None]
    highs = [high for n in lengths if (high := found[n].high) is not None]
    low, high = (_crossing(lengths, ends) if len(ends) == len(lengths) else None for ends in (lows, highs))
    if low == EVERYWHERE and high == math.inf:
        return Crossover(math.nan, low, high, "unclear" + beyond)
    return Crossover(estimate, low, high, _words(estimate, low, high, lengths) + beyond)


def _crossing(lengths: Sequence[int], values: Sequence[float]) -> float:
    logs, x = np.log(values), np.log(lengths)
    dearer = np.flatnonzero(logs > 0)
    if not len(dearer):
        return EVERYWHERE
    last = int(dearer[-1])
    if last + 1 == len(lengths):
        return math.inf
    share = logs[last] / (logs[last] - logs[last + 1])
    return math.exp(x[last] + share * (x[last + 1] - x[last]))


def _words(estimate: float, low: float | None, high: float | None, lengths: Sequence[int]) -> str:
    """`3200 [2900, 3500]`, `≤512` (at every length), `>8192` (at none to the end)."""
    shown, *ends = (_end(x, lengths) for x in (estimate, low, high) if x is not None)
    return f"{shown} [{', '.join(ends)}]" if any(end != shown for end in ends) else shown


def _end(length: float, lengths: Sequence[int]) -> str:
    if length == EVERYWHERE:
        return f"≤{lengths[0]}"
    return f">{lengths[-1]}" if length == math.inf else f"{float(f'{length:.3g}'):.0f}"


def _beyond(last: int, mine: Sequence[int], theirs: Sequence[int]) -> str:
    """Whether the row alone, or its baseline alone, was measured beyond the last length at which both were."""
    for who, lengths in (("alone", mine), ("missing", theirs)):
        if further := [length for length in lengths if length > last]:
            return f"; {who} from {further[0]}"
    return ""
