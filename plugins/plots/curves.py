"""Draws lines along lengths and ranks, each with a style of its own in every panel."""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .style import INK, SOFT, empty, fixed_ticks, line_styles, plain_log_ticks, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .lengths import Growth
    from .world_sizes import Speedups

_BASELINE = {"color": INK, "marker": "D", "linestyle": "-", "linewidth": 1.6}
_MOST_ROWS = 20
"""Of a legend's column."""


def draw_growth(figure: "Figure", data: "Growth") -> None:
    """A panel for each cost, and the legend in the last place."""
    curves = [curve for panel in data.panels for curve in panel.curves]
    styles = _styles((curve.label for curve in curves if not curve.baseline), (c.label for c in curves if c.baseline))
    rows = math.ceil((len(data.panels) + 1) / 3)
    grid = figure.subplots(rows, 3, squeeze=False)
    figure.subplots_adjust(wspace=0.3, hspace=0.38, top=1 - 0.68 / figure.get_size_inches()[1])
    places = list(grid.flat)
    for axes, panel in zip(places, data.panels, strict=False):
        axes.set_title(panel.title, loc="left")
        axes.set_xscale("log")
        axes.set_yscale("log")
        for curve in panel.curves:
            _line(axes, curve.lengths, curve.costs, curve.ends, styles[curve.label])
        fixed_ticks(axes.xaxis, {length for curve in panel.curves for length in curve.lengths})
        plain_log_ticks(axes.yaxis, axes.get_ylim())
        axes.set_xlabel("sequence length (tokens)")
    for axes in places[len(data.panels) :]:
        empty(axes)
    _legend(places[len(data.panels)], styles)


def draw_speedups(figure: "Figure", data: "Speedups") -> None:
    """A panel for each phase, the ideal line, and the legend at the right."""
    stacks = dict.fromkeys(stack.label for phase in data.phases for stack in phase.stacks)
    styles = _styles(stacks, ())
    sizes = {size for phase in data.phases for stack in phase.stacks for size in stack.ranks} | {1}
    grid = figure.subplots(1, len(data.phases) + 1, squeeze=False, width_ratios=[1.0] * len(data.phases) + [0.62])
    *places, legend = list(grid.flat)
    figure.subplots_adjust(wspace=0.25, top=1 - 0.68 / figure.get_size_inches()[1])
    lines = {}
    for axes, phase in zip(places, data.phases, strict=True):
        axes.set_title(phase.title, loc="left")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        ends = [min(sizes), max(sizes)]
        axes.plot(ends, ends, color=SOFT, linewidth=1, linestyle=(0, (1, 1.5)), zorder=1)
        lines["ideal: N ranks, N×"] = {"color": SOFT, "linewidth": 1, "linestyle": (0, (1, 1.5))}
        if data.bound:
            axes.plot(*zip(*data.bound, strict=True), color=SOFT, linewidth=1, linestyle="--", zorder=1)
            lines["what shared cores allow"] = {"color": SOFT, "linewidth": 1, "linestyle": "--"}
        for stack in phase.stacks:
            _line(axes, stack.ranks, stack.speedups, stack.ends, styles[stack.label])
        fixed_ticks(axes.xaxis, sizes)
        plain_log_ticks(axes.yaxis, axes.get_ylim(), "×")
        axes.set_xlabel("ranks" + (", weak scaling" if data.weak else ""))
    places[0].set_ylabel("speedup over a single rank")
    empty(legend)
    _legend(legend, styles | lines)


def _styles(labels: Iterable[str], baselines: Iterable[str]) -> dict[str, dict[str, Any]]:
    """By label, the baseline first; in alphabetic order, so that boards of the same stacks have the same styles."""
    others = sorted(set(labels))
    return dict.fromkeys(baselines, _BASELINE) | dict(zip(others, line_styles(len(others)), strict=True))


def _line(
    axes: "Axes", xs: Iterable[int], ys: Iterable[float], ends: Iterable[tuple[float, float] | None], look: dict[str, Any]
) -> None:
    found = sorted(zip(xs, ys, ends, strict=True))
    middles = [y for _, y, _ in found]
    below, above = ([max(d, 0) for d in side] for side in zip(*(_arms(y, end) for _, y, end in found), strict=True))
    axes.errorbar(
        [x for x, _, _ in found],
        middles,
        yerr=[below, above],
        **({"linewidth": 1.1, "markersize": 4, "elinewidth": 0.7} | look),
    )


def _arms(middle: float, ends: tuple[float, float] | None) -> tuple[float, float]:
    return (middle - ends[0], ends[1] - middle) if ends else (0.0, 0.0)


def _legend(axes: "Axes", styles: dict[str, dict[str, Any]]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], **({"linewidth": 1.1, "markersize": 4} | look), label=shortened(label, 28))
        for label, look in styles.items()
    ]
    axes.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(-0.12, 1.02),
        ncols=math.ceil(len(handles) / _MOST_ROWS),
        handlelength=2.6,
        labelspacing=0.35,
    )
