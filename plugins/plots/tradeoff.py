"""Quality against speed, and against the size of what is stored."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from effbench.plugin.text import clean, missing

from .plot import Plot, shown, under_title

if TYPE_CHECKING:
    from effbench.board.leaderboard import Leaderboard

_COSTS = {
    "train_speed": "training speed relative to the baseline (higher is better)",
    "prefill_speed": "prefill speed relative to the baseline (higher is better)",
    "decode_speed": "decoding speed relative to the baseline (higher is better)",
    "checkpoint": "compression: baseline's checkpoint bytes / its own (higher is better)",
    "sparse": "compression without zeros: baseline's bytes / its own (higher is better)",
}
_NAMES = {"checkpoint": "compression", "sparse": "compression-without-zeros"}
_NO_CHANGE = 0.01
"""Relative; where no stack's bytes differ by more, there is no compression to show."""


@dataclass(frozen=True)
class Point:
    """A stack: `x` is a ratio to the baseline, `y` a difference in quality to it, both with intervals where they have any."""

    label: str
    x: float
    x_ends: tuple[float, float] | None
    y: float
    y_ends: tuple[float, float] | None
    baseline: bool
    ranked: bool
    front: bool = False


@dataclass(frozen=True)
class Tradeoff:
    """Points, and the difference in quality beyond which the suite ranks no stack."""

    x_title: str
    y_title: str
    points: tuple[Point, ...]
    floor: float | None
    higher_is_better: bool


def tradeoff_plots(board: "Leaderboard") -> "Iterator[Plot[Tradeoff]]":
    """One for each speed and size of which two stacks have it and a quality."""
    from .scatter import draw

    higher = board.settings.quality.direction == "higher"
    metric = clean(board.quality_metric).replace("_", " ")
    y_title = f"{metric}, difference to the baseline ({'higher' if higher else 'lower'} is better)"
    for key, x_title in _COSTS.items():
        points = [point for row in board.rows.to_dict("records") if (point := _point(row, key, board.baseline))]
        if len(points) < 2 or (key in _NAMES and not _compressed(points, board, key)):
            continue
        data = Tradeoff(x_title, y_title, tuple(_with_front(points, higher)), _floor(board), higher)
        name = _NAMES.get(key, f"quality-{key.replace('_', '-')}")
        yield Plot(name, clean(board.title), under_title(board), data, draw, (7.4, 4.8))


def _point(row: "dict[Any, Any]", key: str, baseline: str | None) -> Point | None:
    ratio, difference = shown(row[f"{key}_ratio"]), shown(row["quality_difference"])
    if ratio is None or ratio <= 0 or difference is None:
        return None
    x_ends, y_ends = _ends(row, key), _ends(row, "quality")
    if key in _NAMES:  # of sizes, the inverse: to the right is better everywhere
        ratio, x_ends = 1 / ratio, x_ends and (1 / x_ends[1], 1 / x_ends[0])
    is_baseline = row["quality_verdict"] == "baseline"
    return Point(clean(str(row["stack"])), ratio, x_ends, difference, y_ends, is_baseline, not missing(row["rank"]))


def _ends(row: "dict[Any, Any]", key: str) -> tuple[float, float] | None:
    low, high = shown(row[f"{key}_low"]), shown(row[f"{key}_high"])
    return None if low is None or high is None else (low, high)


def _compressed(points: "list[Point]", board: "Leaderboard", key: str) -> bool:
    """Whether some ranked stack is stored in other bytes; without zeros, whether leaving them out matters to some stack."""
    if all(abs(point.x - 1) <= _NO_CHANGE for point in points if point.ranked):
        return False
    if key == "checkpoint":
        return True
    rows = board.rows
    return bool(((rows["checkpoint"] - rows["sparse"]) > _NO_CHANGE * rows["checkpoint"]).any())


def _floor(board: "Leaderboard") -> float | None:
    """As a difference to the baseline's quality; None where baselines at several option values have several."""
    floor, base = board.settings.quality.floor, board.rows.loc[board.rows["quality_verdict"] == "baseline", "quality"]
    if floor is None or len(base) != 1:
        return None
    reference = float(base.iloc[0])
    return reference * ((floor if board.settings.quality.direction == "lower" else 1 / floor) - 1)


def _with_front(points: "list[Point]", higher: bool) -> "list[Point]":
    """Mark those ranked points that no other ranked one beats in both estimates."""
    sign = 1 if higher else -1

    def beats(a: Point, b: Point) -> bool:
        return a.x >= b.x and sign * a.y >= sign * b.y and (a.x, a.y) != (b.x, b.y)

    ranked = [point for point in points if point.ranked]
    return [replace(point, front=point.ranked and not any(beats(other, point) for other in ranked)) for point in points]
