"""How often the board is right about growth with the length, on made-up costs: two parts of `simulate.py`."""

import math

import numpy as np
from numpy.typing import NDArray

from effbench.board.complexity import CLASSES, supported
from effbench.board.lengths import EVERYWHERE, crossover
from effbench.board.stats import ratio_interval

Array = NDArray[np.float64]
TRUTHS = {
    "constant": np.ones_like,
    "n": lambda n: n,
    "n + a": lambda n: n + 1024,
    "n log n": lambda n: n * np.log(n),
    "n√n": lambda n: n**1.5,
    "n²": lambda n: n**2,
    "n + n², equal at 4096": lambda n: n + n**2 / 4096,
}
"""Costs of a length; the last is of no class, and lies between two of them."""

ROUGH = "≈"


def lengths(count: int) -> Array:
    """From 512 on, each twice the one before."""
    return 512 * 2.0 ** np.arange(count)


def classes(draws: int, rng: np.random.Generator) -> None:
    """How often each class is supported, by what the costs truly are."""
    shown = (*CLASSES, ROUGH)
    print("how often a class is supported, and is only the nearest (≈), %, by truth")
    for count, rounds in ((3, 3), (4, 3), (5, 3), (6, 3), (5, 10)):
        for sd in (0.005, 0.02, 0.05):
            heading = f"{count} lengths, {rounds} rounds, {sd:.1%}"
            print(f"{heading:<25}{''.join(f'{name:>10}' for name in shown)}")
            for name in TRUTHS:
                shares = share_supported(name, rng, draws, count, rounds, sd)
                print(f"  {name:<23}{''.join(f'{100 * shares[c]:>10.1f}' for c in shown)}", flush=True)
    print(f"{draws} draws each; standard error of 95 %: ± {100 * math.sqrt(0.95 * 0.05 / draws):.1f} %")


def share_supported(truth: str, rng: np.random.Generator, draws: int, count: int, rounds: int, sd: float) -> dict[str, float]:
    """By class, and of ROUGH, of what is only the nearest; whole rounds drift by a tenth, which must change nothing."""
    n = lengths(count)
    logs = np.log(TRUTHS[truth](n)) + sd * rng.normal(size=(draws, rounds, count)) + 0.1 * rng.normal(size=(draws, rounds, 1))
    found = [supported(n, run) for run in logs]
    shares = {name: float(np.mean([name in support.classes for support in found])) for name in CLASSES}
    return shares | {ROUGH: float(np.mean([support.rough for support in found]))}


def crossovers(draws: int, rng: np.random.Generator) -> None:
    """How often the interval of the crossover holds the truth."""
    print("share of crossover intervals that hold the true length, % (open ends), by slope of the log ratio and true length")
    print(f"{'slope':<8}{'noise':<8}{'true':<10}{''.join(f'{n:>9} rounds' for n in (3, 5, 10, 20))}")
    for slope in (-1.0, -0.3, -0.1, 0.0):
        for sd in (0.01, 0.05):
            for name, true in (CROSSOVERS if slope else EQUAL).items():
                shown = [covered(slope, sd, true, rng, draws, rounds) for rounds in (3, 5, 10, 20)]
                cells = "".join(f"{f'{100 * held:.1f} ({100 * open_:.0f})':>16}" for held, open_ in shown)
                print(f"{slope:<8}{sd:<8.0%}{name:<10}{cells}", flush=True)
    print(f"{draws} draws each; standard error of 95 %: ± {100 * math.sqrt(0.95 * 0.05 / draws):.1f} %")


CROSSOVERS = {"at 2048": 2048.0, "at 2900": 2900.0, "at 9000": 9000.0}
"""At a measured length, between two, and beyond the longest: there an interval must be open."""
EQUAL = {"equal": 512.0}
"""Costs that never differ: at least as cheap from the first length on."""


def covered(slope: float, sd: float, true: float, rng: np.random.Generator, draws: int, rounds: int) -> tuple[float, float]:
    """The share of intervals with the truth, and of those that are open at one end at least; lengths are 512 to 8192."""
    n = lengths(5)
    held, wide = [], []
    for noise in sd * rng.normal(size=(draws, len(n), rounds)):
        logs = slope * np.log(n / true)[:, None] + noise
        found = crossover({int(length): ratio_interval(row) for length, row in zip(n, logs, strict=True)})
        low, high = found.low or EVERYWHERE, found.high or math.inf
        held.append(low <= (true if true <= n[-1] else math.inf) <= high)
        wide.append(low == EVERYWHERE or high == math.inf)
    return float(np.mean(held)), float(np.mean(wide))
