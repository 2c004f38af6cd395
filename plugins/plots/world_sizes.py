"""Speedup against the number of ranks."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from effbench.plugin.text import clean, missing

from .plot import Plot, shown, under_title

if TYPE_CHECKING:
    import pandas as pd

    from effbench.board.leaderboard import Leaderboard

_PHASES = {"train_speed": "training", "prefill_speed": "prefill", "decode_speed": "decoding"}


@dataclass(frozen=True)
class Spread:
    """A stack's speedup at each world size, and its interval where there is one."""

    label: str
    ranks: tuple[int, ...]
    speedups: tuple[float, ...]
    ends: tuple[tuple[float, float] | None, ...]


@dataclass(frozen=True)
class Phase:
    """All stacks in one phase."""

    title: str
    stacks: tuple[Spread, ...]


@dataclass(frozen=True)
class Speedups:
    """By phase; `bound` is what cores that ranks share allow, at each world size, where that is less than ideal."""

    phases: tuple[Phase, ...]
    bound: tuple[tuple[int, float], ...]
    weak: bool


def world_size_plots(board: "Leaderboard") -> "Iterator[Plot[Speedups]]":
    """One for a board of several world sizes."""
    from .curves import draw_speedups

    frame = board.world_sizes
    if frame is None:
        return
    phases = [Phase(title, found) for key, title in _PHASES.items() if (found := _spreads(frame, key))]
    if phases:
        weak = bool((frame["scaling"] == "weak").any())
        title = clean(board.title.replace(f", world_size {board.world_size}", ""))
        data = Speedups(tuple(phases), _bound(frame), weak)
        yield Plot("speedup-by-ranks", title, under_title(board), data, draw_speedups, (2.6 + 2.9 * len(phases), 3.9))


def _spreads(frame: "pd.DataFrame", key: str) -> tuple[Spread, ...]:
    found = []
    for label, own in frame.groupby("stack", sort=False):
        entries = [
            entry for entry in own.to_dict("records") if not missing(entry[f"{key}_ratio"]) and entry[f"{key}_ratio"] > 0
        ]
        if not any(entry["world_size"] > 1 for entry in entries):
            continue
        ranks = tuple(int(entry["world_size"]) for entry in entries)
        speedups = tuple(float(entry[f"{key}_ratio"]) for entry in entries)
        found.append(Spread(clean(str(label)), ranks, speedups, tuple(_ends(entry, key) for entry in entries)))
    return tuple(found)


def _ends(entry: "dict[Any, Any]", key: str) -> tuple[float, float] | None:
    low, high = shown(entry[f"{key}_low"]), shown(entry[f"{key}_high"])
    return None if low is None or high is None else (low, high)


def _bound(frame: "pd.DataFrame") -> tuple[tuple[int, float], ...]:
    known = frame.dropna(subset=["core_bound"]).drop_duplicates("world_size").sort_values("world_size")
    found = tuple((int(size), float(bound)) for size, bound in zip(known["world_size"], known["core_bound"], strict=True))
    return found if any(bound < size for size, bound in found) else ()
