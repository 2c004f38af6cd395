"""Draws a trade-off: points with both intervals, the front of the estimates, the baseline, the floor."""

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .labels import place
from .style import BLUE, HEAD, INK, LEFT, ORANGE, PALE, SOFT, ZERO, plain_log_ticks, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

    from .tradeoff import Point, Tradeoff

_MOST_NAMES = 18
"""Of more points, numbers stand beside them and the names in a key."""
_LINEAR_SPREAD = 20.0
"""Where the largest difference is more times as large as the noise, the axis is logarithmic away from zero."""
_PITCH = 0.128
"""Inches from line to line of the key."""


def draw(figure: "Figure", data: "Tradeoff") -> None:
    """One axes, and at its right the key of numbers where names are too many."""
    numbered = len(data.points) > _MOST_NAMES
    if numbered:
        _make_room(figure, len(data.points))
    axes = figure.add_subplot()
    points = sorted(data.points, key=lambda point: (-point.x, point.label)) if numbered else data.points
    _scales(axes, data)
    _lines(axes, data)
    for point in points:
        _point(axes, point)
    _limits(axes, data)
    names = [str(number + 1) if numbered else shortened(point.label) for number, point in enumerate(points)]
    _labels(axes, data, points, names)
    _legend(figure, axes, data)
    if numbered:
        _key(figure, axes, points)


def _make_room(figure: "Figure", lines: int) -> None:
    """For the key: wider, and as high as it has lines; title and margins keep their inches."""
    width, height = figure.get_size_inches()
    new = max(height, lines * _PITCH + HEAD + 0.55)
    figure.set_size_inches(width + 2.3, new)
    for text in figure.texts:
        x, y = text.get_position()
        text.set_position((x * width / (width + 2.3), 1 - (1 - y) * height / new))
    figure.subplots_adjust(left=LEFT / (width + 2.3), right=1 - 2.75 / (width + 2.3), bottom=0.5 / new, top=1 - HEAD / new)


def _scales(axes: "Axes", data: "Tradeoff") -> None:
    from matplotlib.ticker import FuncFormatter

    axes.set_xscale("log")
    axes.set_xlabel(data.x_title)
    axes.set_ylabel(data.y_title)
    axes.yaxis.set_major_formatter(FuncFormatter(_signed))
    axes.grid(visible=True)
    noise = [(point.y_ends[1] - point.y_ends[0]) / 2 for point in data.points if point.y_ends]
    largest = max(abs(point.y) for point in _core(data))
    if noise and largest > _LINEAR_SPREAD * (typical := float(np.median(noise))):
        _symmetric_log(axes, 10.0 ** round(np.log10(max(typical, largest / 1000))))


def _signed(value: float, _: object) -> str:
    return f"{value:+.3g}".replace("-", "−") if abs(value) > 1e-12 else "0"


def _symmetric_log(axes: "Axes", linear: float) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.set_yscale("symlog", linthresh=linear)
    ticks = [0.0, *(sign * step * linear * 10**k for k in range(6) for step in (1, 3) for sign in (1, -1))]
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(_signed))
    axes.axhspan(-linear, linear, color="#f3f3f3", zorder=0, linewidth=0, label=f"linear within ±{linear:g}, log beyond")


def _lines(axes: "Axes", data: "Tradeoff") -> None:
    axes.axvline(1, color=ZERO, linewidth=0.9, zorder=1)
    axes.axhline(0, color=ZERO, linewidth=0.9, zorder=1)
    if len(corners := _steps(data)) > 1:
        axes.plot(corners[:, 0], corners[:, 1], color=BLUE, linewidth=1, alpha=0.6, zorder=2)


def _steps(data: "Tradeoff") -> NDArray[np.float64]:
    """Corners (corners, 2) of the front: steps, not slopes, for between two stacks nothing was measured."""
    front = sorted((point.x, point.y) for point in data.points if point.front)
    corners = front[:1]
    for (x, _), (next_x, next_y) in itertools.pairwise(front):
        corners += [(x, next_y), (next_x, next_y)]
    return np.array(corners)


def _point(axes: "Axes", point: "Point") -> None:
    shape: dict[str, Any] = {"marker": "o", "markersize": 5, "color": PALE, "markeredgewidth": 0.9}
    if point.baseline:
        shape |= {"marker": "D", "color": INK}
    elif point.front:
        shape |= {"color": BLUE}
    elif not point.ranked:
        shape |= {"color": SOFT, "markerfacecolor": "white"}
    errors: dict[str, Any] = {
        name: [[max(middle - ends[0], 0)], [max(ends[1] - middle, 0)]]
        for name, middle, ends in (("xerr", point.x, point.x_ends), ("yerr", point.y, point.y_ends))
        if ends
    }
    axes.errorbar(
        [point.x],
        [point.y],
        **errors,
        elinewidth=0.7,
        ecolor=SOFT if shape["color"] == PALE else f"{shape['color']}a0",
        zorder=3,
        linestyle="none",
        **shape,
    )


def _limits(axes: "Axes", data: "Tradeoff") -> None:
    """All that is ranked, and half as far again for intervals and for what is not: very far ones leave the picture."""
    core, points = _core(data), data.points
    xs = _reach(axes.xaxis, [1.0, *(p.x for p in core)], [end for p in points for end in (p.x, *(p.x_ends or ()))])
    ys = _reach(axes.yaxis, [0.0, *(p.y for p in core)], [end for p in points for end in (p.y, *(p.y_ends or ()))])
    axes.set_xlim(*xs)
    axes.set_ylim(*ys)
    plain_log_ticks(axes.xaxis, xs, "×")
    if data.floor is not None and ys[0] < data.floor < ys[1]:
        axes.axhline(data.floor, color=ORANGE, linewidth=1, linestyle="--", zorder=1, label="quality floor")


def _core(data: "Tradeoff") -> "list[Point]":
    """What a plot must show: the ranked stacks and the baseline; all where nothing is ranked."""
    return [point for point in data.points if point.ranked or point.baseline] or [*data.points]


def _reach(axis: "Axis", values: Sequence[float], ends: Sequence[float]) -> tuple[float, float]:
    """Limits on the axis's own scale, with a margin."""
    scale = axis.get_transform()
    inner, outer = (scale.transform(np.array(part, dtype=float)) for part in (values, [*ends, *values]))
    reach = float(np.ptp(inner))
    margin = 0.08 * reach or 0.01
    low = max(outer.min(), inner.min() - reach / 2) - margin
    high = min(outer.max(), inner.max() + reach / 2) + margin
    first, last = scale.inverted().transform(np.array([low, high]))
    return float(first), float(last)


def _labels(axes: "Axes", data: "Tradeoff", points: "Sequence[Point]", names: Sequence[str]) -> None:
    labels = [
        axes.annotate(
            name,
            (point.x, point.y),
            xytext=(0, 0),
            textcoords="offset points",
            ha="center",
            va="center",
            size=7,
            weight="bold" if point.front or point.baseline else "normal",
            color=INK if point.ranked or point.baseline else SOFT,
            arrowprops={"arrowstyle": "-", "color": SOFT, "linewidth": 0.5, "shrinkA": 1, "shrinkB": 3},
            zorder=5,
        )
        for point, name in zip(points, names, strict=True)
    ]
    bars = [np.array([[x, point.y] for x in point.x_ends]) for point in points if point.x_ends]
    bars += [np.array([[point.x, y] for y in point.y_ends]) for point in points if point.y_ends]
    bars += [np.array(pair) for pair in itertools.pairwise(_steps(data))]
    place(axes, labels, np.array([[point.x, point.y] for point in points]), bars)


def _legend(figure: "Figure", axes: "Axes", data: "Tradeoff") -> None:
    """What the marks mean, of those that are there."""
    from matplotlib.lines import Line2D

    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    beyond = sum(not (left < point.x < right and bottom < point.y < top) for point in data.points)
    front = "front of the estimates"
    kinds: list[tuple[str, dict[str, Any], bool]] = [
        ("baseline", {"marker": "D", "color": INK}, any(p.baseline for p in data.points)),
        (front, {"marker": "o", "color": BLUE, "linestyle": "-"}, any(p.front and not p.baseline for p in data.points)),
        ("ranked", {"marker": "o", "color": PALE}, any(p.ranked and not p.front and not p.baseline for p in data.points)),
        (
            "not ranked" + (f", {beyond} beyond the axes" if beyond else ""),
            {"marker": "o", "color": SOFT, "markerfacecolor": "white"},
            any(not p.ranked and not p.baseline for p in data.points),
        ),
    ]
    plain: dict[str, Any] = {"linestyle": "none", "linewidth": 1, "markersize": 5}
    marks = [Line2D([], [], label=name, **(plain | look)) for name, look, there in kinds if there]
    lines, _ = axes.get_legend_handles_labels()
    axes.legend(
        handles=[*marks, *lines],
        loc="lower left",
        bbox_to_anchor=(0.005, axes.get_position().y1),
        bbox_transform=figure.transFigure,
        ncols=6,
        fontsize=7,
        borderpad=0.2,
        handlelength=1.6,
        handletextpad=0.4,
        columnspacing=1.0,
    )


def _key(figure: "Figure", axes: "Axes", points: "Sequence[Point]") -> None:
    """Which number is which stack."""
    place, pitch = axes.get_position(), _PITCH / figure.get_size_inches()[1]
    for number, point in enumerate(points):
        look: dict[str, Any] = {"va": "top", "size": 6.8, "color": INK, "weight": "bold" if point.front else "normal"}
        y = place.y1 - number * pitch
        figure.text(place.x1 + 0.03, y, str(number + 1), ha="right", **look)
        figure.text(place.x1 + 0.037, y, shortened(point.label, 42), **look)
