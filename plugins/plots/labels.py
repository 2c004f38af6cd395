"""Labels beside their points that cover neither each other nor the points."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation

_RADII = (6.0, 10.0, 16.0, 24.0, 34.0, 46.0, 60.0, 78.0)
"""Points from a marker's middle."""
_ANGLES = tuple(math.radians(angle) for angle in range(0, 360, 15))
_LEADER = 12.0
"""From this distance on a line leads to the point."""
_LABEL, _MARKER, _OUTSIDE, _BAR = 60.0, 25.0, 80.0, 4.0
"""What a label pays, in points of distance, for covering a label, a marker, the edge, an interval."""

Boxes = NDArray[np.float64]
"""(…, 4): left, bottom, right, top in pixels."""


def place(
    axes: "Axes", labels: "Sequence[Annotation]", points: NDArray[np.float64], bars: Sequence[NDArray[np.float64]]
) -> None:
    """Move each label to the nearest place around its point that is free.

    Args:
        axes: Where they are; its limits must be final.
        labels: One per point, `textcoords` in offset points.
        points: (labels, 2), the points in data coordinates.
        bars: Further things to avoid, each (corners, 2) in data coordinates.
    """
    figure = axes.get_figure(root=True)
    if figure is None:
        raise ValueError("axes of no figure have no place for labels")
    scale = figure.dpi / 72
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]  # of the Agg canvas, which measures text
    pixels = axes.transData.transform(points)
    marker = 3.5 * scale
    markers = np.concatenate([pixels - marker, pixels + marker], axis=1)
    edges = axes.get_window_extent(renderer)
    thin = [axes.transData.transform(bar) for bar in bars]
    intervals = np.array([[*bar.min(axis=0), *bar.max(axis=0)] for bar in thin]).reshape(-1, 4)
    taken = np.empty((0, 4))
    crowd = (np.linalg.norm(pixels[:, None] - pixels[None], axis=2) < 40 * scale).sum(axis=1)
    for index in sorted(range(len(labels)), key=lambda i: (-crowd[i], pixels[i][0])):
        extent = labels[index].get_window_extent(renderer)
        offsets, boxes = _candidates(pixels[index], extent.width, extent.height, scale)
        cost = np.linalg.norm(offsets, axis=1) * 0.5 + _LABEL * _covers(boxes, taken, 1.0 * scale)
        cost += _MARKER * _covers(boxes, markers, 0) + _BAR * _covers(boxes, intervals, 0)
        outside = (boxes[:, :2] < [edges.x0, edges.y0]).any(axis=1) | (boxes[:, 2:] > [edges.x1, edges.y1]).any(axis=1)
        best = int(np.argmin(cost + _OUTSIDE * outside))
        taken = np.vstack([taken, boxes[best]])
        _move(labels[index], offsets[best])


def _candidates(pixel: NDArray[np.float64], width: float, height: float, scale: float) -> tuple[Boxes, Boxes]:
    """Offsets of the label's middle in points, and its boxes in pixels: the nearer side touches the circle."""
    offsets = []
    for radius in _RADII:
        for angle in _ANGLES:
            x, y = math.cos(angle), math.sin(angle)
            offsets.append([x * radius + x * width / scale / 2, y * radius + y * height / scale / 2])
    found = np.array(offsets)
    middles = pixel + found * scale
    half = np.array([width / 2, height / 2])
    return found, np.concatenate([middles - half, middles + half], axis=1)


def _covers(boxes: Boxes, others: Boxes, gap: float) -> NDArray[np.float64]:
    """How many of the others each box overlaps."""
    a, b = boxes[:, None], others[None]
    apart = (a[..., :2] > b[..., 2:] + gap).any(axis=-1) | (a[..., 2:] < b[..., :2] - gap).any(axis=-1)
    return np.asarray((~apart).sum(axis=1), dtype=np.float64)


def _move(label: "Annotation", offset: NDArray[np.float64]) -> None:
    label.set_position((float(offset[0]), float(offset[1])))
    if label.arrow_patch is not None:
        label.arrow_patch.set_visible(float(np.hypot(*offset)) >= _LEADER)
