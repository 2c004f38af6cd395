"""What a plot is: its data, and how to draw it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from effbench.board.leaderboard import Leaderboard

Data = TypeVar("Data")


@dataclass(frozen=True)
class Plot(Generic[Data]):
    """A figure to be drawn."""

    kind: str
    """Ends its file's name."""
    title: str
    subtitle: str
    data: Data
    """A dataclass of plain values: all that `draw` draws, so that its digest tells a stale plot."""
    draw: "Callable[[Figure, Data], None]"
    """Into the part of the figure below the title."""
    size: tuple[float, float]
    """Inches."""


def shown(value: Any) -> float | None:
    """A number, or None for what is missing."""
    from effbench.plugin.text import missing

    return None if missing(value) else float(value)


def under_title(board: "Leaderboard") -> str:
    """Where and how often it was measured."""
    from effbench.plugin.text import MISSING, clean

    first, last = board.rounds
    rounds = f"{last}" if first == last else f"{first} to {last}"
    return clean(
        f"machine {board.machine} · rounds {rounds} · baseline {board.baseline or MISSING} · 95 % intervals over rounds"
    )
