"""How often `effbench compare` finds equal code slower, where sessions differ beside the noise of their rounds."""

import math

import numpy as np

from effbench.board.changes import contrast_of
from effbench.board.contrast import holm_contrasts
from effbench.board.sides import Logs
from effbench.board.verdict import SPEED, verdict

MARGIN = 0.05
CELLS = 12
"""The first is the baseline."""
NOISE = 0.02
MOODS = ((0.0, 0.0), (0.01, 0.0), (0.02, 0.0), (0.03, 0.0), (0.05, 0.0), (0.02, 0.01), (0.02, 0.02), (0.02, 0.03))


_DESIGNS = {
    f"{'relative, ' if relative else ''}{count} of {rounds}": ((count, rounds), relative)
    for count, rounds in ((1, 10), (5, 2), (10, 1))
    for relative in (False, True)
}
"""Sessions and rounds of each on either side, ten rounds in all, and whether speeds are relative to the baseline."""


def sessions(draws: int, rng: np.random.Generator) -> None:
    """Sessions differ by a mood that all cells share, and by what a cell has of its own, as where its memory lies."""
    about = f"{CELLS} cells, noise of a trial {NOISE:.0%}, margin {MARGIN:.0%}; in %"
    for slowdown, what in (
        (0.0, "comparisons of equal code that fail"),
        (0.15, "slowdowns of one cell by 15 % that are found"),
    ):
        print(f"{what}: {about}")
        print(f"{'mood, own':<12}" + "".join(f"{name:>19}" for name in _DESIGNS))
        for mood, own in MOODS:
            shares = [
                called(draws, rng, mood, own, shape=shape, relative=relative, slowdown=slowdown)
                for shape, relative in _DESIGNS.values()
            ]
            print(f"{f'{mood:.0%}, {own:.0%}':<12}" + "".join(f"{100 * share:>19.1f}" for share in shares), flush=True)
    print(f"{draws} comparisons each; standard error of 1 %: ± {100 * math.sqrt(0.01 * 0.99 / draws):.1f} %")


def called(
    draws: int,
    rng: np.random.Generator,
    mood: float,
    own: float,
    *,
    shape: tuple[int, int],
    relative: bool,
    slowdown: float = 0.0,
) -> float:
    """Share of comparisons in which some cell is called SLOWER, or the one that is; `shape` is sessions, and rounds of each."""
    hits = 0
    for _ in range(draws):
        old, new = (run(rng, mood, own, shape, relative) for _ in range(2))
        new[-1] = {trial: log - math.log1p(slowdown) for trial, log in new[-1].items()}
        adjusted = holm_contrasts([contrast_of(*logs)[0] for logs in zip(old, new, strict=True)], math.log1p(MARGIN))
        slower = [verdict(interval, MARGIN) == SPEED.bad for _, interval in adjusted]
        hits += slower[-1] if slowdown else any(slower)
    return hits / draws


def run(rng: np.random.Generator, mood: float, own: float, shape: tuple[int, int], relative: bool) -> list[Logs]:
    """One side's log speeds by cell; `relative` to the first cell, which is then left out."""
    count, rounds = shape
    logs = NOISE * rng.normal(size=(CELLS, count, rounds))
    logs += mood * rng.normal(size=(1, count, 1)) + own * rng.normal(size=(CELLS, count, 1))
    if relative:
        logs = logs[1:] - logs[0]
    name = str(rng.integers(1 << 60))
    return [{(f"{name} {s}", r): float(cell[s, r]) for s in range(count) for r in range(rounds)} for cell in logs]
