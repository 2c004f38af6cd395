"""Cost along the sequence length."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from effbench.plugin.text import clean

from .plot import Plot, under_title

if TYPE_CHECKING:
    from effbench.board.leaderboard import Leaderboard
    from effbench.board.lengths import Group
    from effbench.board.rows import Row

_TITLES = {
    "train.step_s": "training step (s)",
    "infer.prefill_s": "prefill (s)",
    "infer.decode_token_s": "decoded token (ms)",
    "train.peak_memory_bytes": "peak memory, training (MiB)",
    "infer.peak_memory_bytes": "peak memory, inference (MiB)",
}
_UNITS = {"infer.decode_token_s": 1e-3, "train.peak_memory_bytes": 2**20, "infer.peak_memory_bytes": 2**20}


@dataclass(frozen=True)
class Curve:
    """A stack's cost at each length (tokens), and its interval over rounds where there is one."""

    label: str
    baseline: bool
    lengths: tuple[int, ...]
    costs: tuple[float, ...]
    ends: tuple[tuple[float, float] | None, ...]


@dataclass(frozen=True)
class Panel:
    """One cost of all stacks."""

    title: str
    curves: tuple[Curve, ...]


@dataclass(frozen=True)
class Growth:
    """All costs at one batch size and dtype."""

    panels: tuple[Panel, ...]


def length_plots(board: "Leaderboard") -> "Iterator[Plot[Growth]]":
    """One for each batch size and dtype of a board of three lengths or more."""
    from effbench.board.lengths import Group

    from .curves import draw_growth

    if board.by_length is None:
        return
    keys = board.by_length[["batch_size", "dtype"]].drop_duplicates().itertuples(index=False)
    groups = [Group(int(batch_size), str(dtype)) for batch_size, dtype in keys]
    for group in groups:
        panels = [panel for metric in _TITLES if (panel := _panel(board, metric, group)).curves]
        several = f"-batch-{group.batch_size}-{group.dtype}" if len(groups) > 1 else ""
        title = clean(board.title) + (f", batch size {group.batch_size}, {clean(group.dtype)}" if several else "")
        rows = math.ceil((len(panels) + 1) / 3)  # one place is the legend's
        yield Plot(
            f"cost-by-length{several}", title, under_title(board), Growth(tuple(panels)), draw_growth, (9.4, 0.75 + 3 * rows)
        )


def _panel(board: "Leaderboard", metric: str, group: "Group") -> Panel:
    rows = {row.label: row for row in board.table.rows}
    labels = dict.fromkeys(board.rows["stack"])
    found = [_curve(rows[label], metric, group, board.baseline) for label in labels]
    return Panel(_TITLES[metric], tuple(curve for curve in found if curve.lengths))


def _curve(row: "Row", metric: str, group: "Group", baseline: str | None) -> Curve:
    """Geometric means over rounds with their t intervals: unlike ratios, these carry what rounds differ by as a whole."""
    from effbench.board.lengths import lengths_of
    from effbench.board.stats import ratio_interval

    lengths = lengths_of(row, metric, group)
    unit = _UNITS.get(metric, 1)
    costs, ends = [], []
    for length in lengths:
        shape = group.at(length)
        values = [value / unit for trial, value in row.values[metric].items() if trial.shape == shape and value > 0]
        found = ratio_interval(np.log(values))
        costs.append(found.estimate)
        ends.append(None if found.low is None or found.high is None else (found.low, found.high))
    return Curve(clean(row.label), row.stack == baseline, tuple(lengths), tuple(costs), tuple(ends))
