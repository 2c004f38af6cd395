"""How often the whole procedure errs, and what it can see: `python tools/simulate.py [errors | coverage | looks | power]`.

Draws made-up per-round log ratios and judges them with the functions that judge real ones. Each line of output says what was
drawn, how often the procedure was wrong, and the Monte-Carlo standard error of that share. One core, a few minutes.
"""

import argparse
import math
from collections.abc import Callable, Iterator

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
    """Two levels, as of a clock that is boosted in a third of the rounds, with some spread around each."""
    return (rng.random(shape) < 1 / 3) * 2.0 + 0.3 * rng.normal(size=shape)


def _drifting(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Half of the variance is a wave over the rounds with a phase of its own per stack: drift that pairing did not take out."""
    phase = rng.uniform(0, 2 * np.pi, (*shape[:-1], 1))
    return np.sin(2 * np.pi * np.arange(shape[-1]) / 7 + phase) + rng.normal(size=shape) / math.sqrt(2)


def _correlated(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Each round keeps 0.3 of the one before (AR(1))."""
    steps = rng.normal(size=shape)
    for k in range(1, shape[-1]):
        steps[..., k] = 0.3 * steps[..., k - 1] + math.sqrt(1 - 0.09) * steps[..., k]
    return steps


NOISES: dict[str, Noise] = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "heavy tails (t3)": lambda rng, shape: rng.standard_t(3, size=shape),
    "bimodal": _bimodal,
    "drift": _drifting,
    "autocorrelated": _correlated,
}


def scaled(noise: Noise, rng: np.random.Generator, shape: tuple[int, ...], sd: float) -> Array:
    """Draws of mean 0 and standard deviation `sd`, by a large sample of the same kind."""
    reference = noise(np.random.default_rng(0), (4000, 50))
    return (noise(rng, shape) - reference.mean()) * (sd / reference.std())


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


def shared_baseline(noise: Noise, rng: np.random.Generator, stacks: int, sd: float) -> Array:
    """Log ratios of stacks to one baseline: half of each ratio's variance is the baseline's, the same for all."""
    draws = scaled(noise, rng, (stacks + 1, ROUNDS), sd / math.sqrt(2))
    return draws[1:] - draws[0]


def errors(draws: int, rng: np.random.Generator) -> None:
    """A board of 30 equal stacks: the share of boards, and of stacks, that are ever called FASTER or SLOWER."""
    print(f"30 equal stacks, δ = {DELTA:.0%}: ever FASTER or SLOWER, % of stacks / % of boards")
    print(f"{'noise':<18} {'sd':>4}  {'fixed 3 / 5 / 10 / 20 rounds':<44} {'--until-clear':<16} looked at after every round")
    for name, noise in NOISES.items():
        for sd in (0.01, 0.03, 0.06, 0.12):
            wrong = {key: np.zeros(2) for key in (3, 5, 10, 20, "clear", "every")}
            for _ in range(draws):
                logs = shared_baseline(noise, rng, 30, sd)
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
            for row in scaled(noise, rng, (draws, n), 0.05):
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
    statistic = np.abs(mean) / np.sqrt(np.maximum(squares - n * mean**2, 1e-300) / np.maximum(n - 1, 1) / n)
    print("level   ever rejects a true hypothesis in 3 to 20 rounds, %: every round / at the looks of --until-clear")
    for level in (0.05, 0.02, 0.0125, 0.01, VERDICT_LEVEL, 0.005):
        beyond = statistic[:, MIN_ROUNDS - 1 :] > t.isf(level / 2, n[MIN_ROUNDS - 1 :] - 1)
        at_looks = beyond[:, [look - MIN_ROUNDS for look in LOOKS]]
        print(f"{level:<7} {100 * beyond.any(axis=1).mean():.2f} / {100 * at_looks.any(axis=1).mean():.2f}")
    print(f"{draws} draws; standard error of 5 %: ± {100 * math.sqrt(0.05 * 0.95 / draws):.2f} %")


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


PARTS = {"looks": (looks, 2000), "coverage": (coverage, 2000), "errors": (errors, 300), "power": (power, 400)}


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
