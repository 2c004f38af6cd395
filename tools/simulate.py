"""How often the whole procedure errs, and what it can see: `python tools/simulate.py [errors | coverage | looks | power]`.

Draws made-up runs, trial by trial in shuffled rounds, and judges their log ratios with the functions that judge real ones. Each
table says how often the procedure was wrong, and with which Monte-Carlo standard error. One core, some minutes.
"""

import argparse
import math
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from effbench.board.clarity import LOOKS
from effbench.board.stats import MIN_ROUNDS, VERDICT_LEVEL, holm_intervals, ratio_interval
from effbench.board.verdict import SPEED, UNCLEAR, verdict

Array = NDArray[np.float64]
Noise = Callable[[np.random.Generator, tuple[int, ...]], Array]
DELTA = 0.03
ROUNDS = LOOKS[-1]


def _bimodal(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Two levels, as of a clock that is boosted in a third of the trials, with some spread around each."""
    return (rng.random(shape) < 1 / 3) * 2.0 + 0.3 * rng.normal(size=shape)


def _drifting(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """A machine that grows slower, and warms and cools in waves of about 40 trials, beside noise of its own."""
    time = np.arange(shape[-1])
    phase = rng.uniform(0, 2 * np.pi, (*shape[:-1], 1))
    return 3 * time / shape[-1] + np.sin(2 * np.pi * time / 40 + phase) + 0.5 * rng.normal(size=shape)


def _correlated(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Each trial keeps half of the one before (AR(1)): disturbances that last for a few trials."""
    steps = rng.normal(size=shape)
    for k in range(1, shape[-1]):
        steps[..., k] = 0.5 * steps[..., k - 1] + math.sqrt(0.75) * steps[..., k]
    return steps


NOISES: dict[str, Noise] = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "heavy tails (t3)": lambda rng, shape: rng.standard_t(3, size=shape),
    "bimodal": _bimodal,
    "drift": _drifting,
    "autocorrelated": _correlated,
}
"""Of a machine along the trials of a run, one value a trial."""


def run_of(noise: Noise, rng: np.random.Generator, stacks: int, rounds: int, sd: float) -> Array:
    """Log ratios (stacks, rounds) of equal stacks to one more, the baseline: every round visits all of them in shuffled order.

    `sd` is that of the paired log ratios.
    """
    trials = noise(rng, (rounds * (stacks + 1),)).reshape(rounds, stacks + 1)
    values = rng.permuted(trials, axis=1)
    return sd / _paired_sd(noise, stacks) * (values[:, 1:] - values[:, :1]).T


@cache
def _paired_sd(noise: Noise, stacks: int) -> float:
    rng = np.random.default_rng(0)
    trials = rng.permuted(noise(rng, (500, 20 * (stacks + 1))).reshape(500, 20, stacks + 1), axis=2)
    return float((trials[..., 1] - trials[..., 0]).std())


def board_verdicts(logs: list[Array]) -> list[str]:
    """What the board says of each stack's log ratios; exactly what the leaderboard does."""
    return [verdict(adjusted, DELTA) for _, adjusted in holm_intervals(logs, math.log1p(DELTA))]


def until_clear(logs: Array) -> tuple[list[str], int]:
    """Verdicts of one board under `--until-clear`, and its rounds: clear stacks stop, unclear ones go on to the next look."""
    counts = np.full(len(logs), LOOKS[0])
    words = board_verdicts([row[:n] for row, n in zip(logs, counts, strict=True)])
    for look in LOOKS[1:]:
        unclear = [i for i, word in enumerate(words) if word == UNCLEAR]
        if not unclear:
            break
        counts[unclear] = look
        words = board_verdicts([row[:n] for row, n in zip(logs, counts, strict=True)])
    return words, int(counts.sum())


def every_round(logs: Array) -> Iterator[list[str]]:
    """The board as somebody sees it who looks after each round."""
    for n in range(MIN_ROUNDS, logs.shape[1] + 1):
        yield board_verdicts(list(logs[:, :n]))


def errors(draws: int, rng: np.random.Generator) -> None:
    """A board of 30 equal stacks: the share of boards, and of stacks, that are ever called FASTER or SLOWER."""
    print(f"30 equal stacks, δ = {DELTA:.0%}: ever FASTER or SLOWER, % of stacks / % of boards")
    print(f"{'noise':<18} {'sd':>4}  {'fixed 3 / 5 / 10 / 20 rounds':<44} {'--until-clear':<16} looked at after every round")
    for name, noise in NOISES.items():
        for sd in (0.01, 0.03, 0.06, 0.12):
            wrong = {key: np.zeros(2) for key in (3, 5, 10, 20, "clear", "every")}
            for _ in range(draws):
                logs = run_of(noise, rng, 30, ROUNDS, sd)
                for n in (3, 5, 10, 20):
                    wrong[n] += _wrong([board_verdicts(list(logs[:, :n]))])
                wrong["clear"] += _wrong([until_clear(logs)[0]])
                wrong["every"] += _wrong(list(every_round(logs)))
            shown = [f"{100 * stack / draws:.2f} / {100 * board / draws:.1f}" for stack, board in wrong.values()]
            print(f"{name:<18} {sd:>4.0%}  {'  '.join(f'{s:<10}' for s in shown[:4])} {shown[4]:<16} {shown[5]}", flush=True)
    print(f"{draws} boards each; standard error of 5 % of boards: ± {100 * math.sqrt(0.05 * 0.95 / draws):.1f} %")


def _wrong(looks: list[list[str]]) -> Array:
    called = np.array([[word in SPEED for word in words] for words in looks]).any(axis=0)
    return np.array([called.mean(), float(called.any())])


def coverage(draws: int, rng: np.random.Generator) -> None:
    """How often the 95 % interval that is shown holds the true ratio."""
    print("share of 95 % intervals that hold the true ratio, %")
    print(f"{'noise':<18} {''.join(f'{n:>4} rounds' for n in (3, 5, 10, 20))}")
    for name, noise in NOISES.items():
        shown = []
        for n in (3, 5, 10, 20):
            held = 0
            for _ in range(draws):
                row = run_of(noise, rng, 5, n, 0.05)[0]
                interval = ratio_interval(row)
                held += interval.low is not None and interval.high is not None and interval.low <= 1 <= interval.high
            shown.append(f"{100 * held / draws:>11.1f}")
        print(f"{name:<18} {''.join(shown)}", flush=True)
    print(f"{draws} draws each; standard error of 95 %: ± {100 * math.sqrt(0.95 * 0.05 / draws):.1f} %")


def looks(draws: int, rng: np.random.Generator) -> None:
    """Where VERDICT_LEVEL comes from: one t test at a constant level, looked at after every round from 3 on."""
    draws *= 100
    n = np.arange(1, ROUNDS + 1)
    values = rng.normal(size=(draws, ROUNDS))
    sums, squares = np.cumsum(values, axis=1), np.cumsum(values**2, axis=1)
    mean = sums / n
    statistic = mean / np.sqrt(np.maximum(squares - n * mean**2, 1e-300) / np.maximum(n - 1, 1) / n)
    print("ever wrong in 3 to 20 rounds, %: without a margin (either side) / truly at the margin (one side)")
    print("level     looks after 3, 5, 8, 12, 20   after every round")
    for level in (0.05, 0.025, VERDICT_LEVEL, 0.0075, 0.005):
        critical = t.isf(level / 2, n[MIN_ROUNDS - 1 :] - 1)
        either, above = (s[:, MIN_ROUNDS - 1 :] > critical for s in (np.abs(statistic), statistic))
        at_looks = [look - MIN_ROUNDS for look in LOOKS]
        shown = (f"{_ever(either[:, when])} / {_ever(above[:, when])}" for when in (at_looks, slice(None)))
        print(f"{level:<9} {'   '.join(f'{part:<27}' for part in shown)}")
    print(f"{draws} draws; standard error of 5 %: ± {100 * math.sqrt(0.05 * 0.95 / draws):.2f} %")


def _ever(beyond: NDArray[np.bool_]) -> str:
    return f"{100 * beyond.any(axis=1).mean():.2f}"


def power(draws: int, rng: np.random.Generator) -> None:
    """The smallest slowdown that is called SLOWER in 90 % of runs, and how a slowdown of 5 % fares."""
    print(f"smallest slowdown called SLOWER in ≥ 90 % of runs (δ = {DELTA:.0%}), by rounds and (equal) stacks on the board, %")
    sizes = ((3, 1), (10, 1), (10, 6), (10, 30), (20, 1))
    print(
        "paired noise  " + "".join(f"{f'{n} rounds, {stacks}':>14}" for n, stacks in sizes) + "   5 % is called at 10 / 12 / 20"
    )
    for sd in (0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.08):
        small = "".join(f"{100 * smallest(rng, draws, sd, n, stacks):>14.1f}" for n, stacks in sizes)
        called = " / ".join(f"{share(rng, 4 * draws, sd, n, 1, 0.05):.0%}" for n in (10, 12, 20))
        print(f"{sd:<14.1%}{small}   {called}", flush=True)


def share(rng: np.random.Generator, draws: int, sd: float, rounds: int, stacks: int, slowdown: float) -> float:
    """How often a stack that is slower by `slowdown` is called SLOWER beside `stacks` - 1 equal ones."""
    found = 0
    for _ in range(draws):
        logs = rng.normal(0, sd, (stacks, rounds))
        logs[0] -= math.log1p(slowdown)
        found += board_verdicts(list(logs))[0] == SPEED.bad
    return found / draws


def smallest(rng: np.random.Generator, draws: int, sd: float, rounds: int, stacks: int) -> float:
    """By bisection, to a twentieth of the noise."""
    low, high = DELTA, DELTA + 60 * sd
    while high - low > sd / 20:
        middle = (low + high) / 2
        low, high = (low, middle) if share(rng, draws, sd, rounds, stacks, middle) >= 0.9 else (middle, high)
    return high


PARTS = {"looks": (looks, 2000), "coverage": (coverage, 2000), "errors": (errors, 200), "power": (power, 400)}


def main() -> None:
    """Run one part, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=list(PARTS))
    parser.add_argument("--draws", type=int)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for name, (part, draws) in PARTS.items():
        if arguments.part in (None, name):
            part(arguments.draws or draws, np.random.default_rng(arguments.seed))
            print()


if __name__ == "__main__":
    main()
