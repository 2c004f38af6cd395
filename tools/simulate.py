"""How often the whole procedure errs, and what it can see: `python tools/simulate.py [PART]`.

Draws made-up runs, trial by trial in shuffled rounds, and judges their log ratios as the board does (`many_boards.py`, held
equal to it by a test); growth along the length is in `growth.py`, comparisons of two runs in `sessions.py`. Each table says how
often the procedure was wrong, with its Monte-Carlo error. One core, about four minutes.
"""

import argparse
import math
from collections.abc import Callable
from functools import cache

import numpy as np
from growth import classes, crossovers
from many_boards import FASTER, SAME, SLOWER, Verdicts, every_round, until_clear, verdicts
from numpy.typing import NDArray
from scipy.special import betaincinv
from scipy.stats import t
from sessions import sessions

from effbench.board.clarity import LOOKS
from effbench.board.stats import MIN_ROUNDS, VERDICT_LEVEL

Array = NDArray[np.float64]
Noise = Callable[[np.random.Generator, tuple[int, ...]], Array]
DELTA = 0.03
BOUND = math.log1p(DELTA)
STACKS = 30
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


def _round_correlated(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """An AR(1) of 0.3 from round to round."""
    steps = rng.normal(size=shape)
    for k in range(1, shape[-1]):
        steps[..., k] = 0.3 * steps[..., k - 1] + math.sqrt(0.91) * steps[..., k]
    return steps


def _round_levels(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Two levels that hit whole rounds; their mean is the truth."""
    return _bimodal(rng, shape) - 2 / 3


ROUND_NOISES: dict[str, Noise] = {"rounds AR 0.3": _round_correlated, "rounds bimodal": _round_levels}
"""Of the log ratios themselves, round by round: what shuffling is there to prevent."""


def run_of(noise: Noise, rng: np.random.Generator, boards: int, stacks: int, rounds: int) -> Array:
    """Log ratios (boards, stacks, rounds) of equal stacks to one more, the baseline, with a paired standard deviation of 1.

    Every round visits all of them in shuffled order.
    """
    return _ratios(noise, rng, boards, stacks, rounds) / _paired_sd(noise, stacks)


def _ratios(noise: Noise, rng: np.random.Generator, boards: int, stacks: int, rounds: int) -> Array:
    trials = noise(rng, (boards, rounds * (stacks + 1))).reshape(boards, rounds, stacks + 1)
    values = rng.permuted(trials, axis=2)
    return np.swapaxes(values[..., 1:] - values[..., :1], 1, 2)


@cache
def _paired_sd(noise: Noise, stacks: int) -> float:
    return float(_ratios(noise, np.random.default_rng(0), 500, stacks, ROUNDS).std())


TRUTHS: dict[str, Array] = {
    "equal": np.zeros(STACKS),
    "at the margin": np.full(STACKS, BOUND),
    "half at the margin, half 20 % faster": np.repeat([BOUND, math.log(1.2)], STACKS // 2),
}
"""The true log ratios of a board's stacks. At the margin, 1+δ, is the hardest that is not FASTER."""


def errors(draws: int, rng: np.random.Generator) -> None:
    """A board of 30 stacks: the share of stacks, and of boards, that are ever judged wrongly."""
    runs = {name: run_of(noise, rng, draws, STACKS, ROUNDS) for name, noise in NOISES.items()}
    heads = ("3, 5, 10, 20 rounds, worst", "--until-clear", "after every round", "SAME at or beyond δ")
    for name, truth in TRUTHS.items():
        print(
            f"{STACKS} stacks, {name}, δ = {DELTA:.0%}: ever wrongly FASTER or SLOWER, % of stacks / % of boards (upper bound)"
        )
        print(f"{'noise':<18} {'sd':>4}  " + " ".join(f"{head:<28}" for head in heads))
        for noise, unit in runs.items():
            for sd in (0.01, 0.03, 0.06, 0.12):
                print(f"{noise:<18} {sd:>4.0%}  {_errors(truth[:, None] + sd * unit, truth)}", flush=True)
    print(f"{draws} boards each, the same noise under every truth and sd; the bound is the upper end of a 95 % interval")


def _errors(logs: Array, truth: Array) -> str:
    fixed = [wrong(verdicts(logs[..., :n], BOUND), truth) for n in (3, 5, 10, 20)]
    worst = max(fixed, key=lambda called: called.any(axis=1).mean())
    clear = until_clear(logs, BOUND)[0]
    ever = [np.any([wrong(board, truth) for board in boards], axis=0) for boards in (clear, every_round(logs, BOUND))]
    same = np.any([(board == SAME) & (np.abs(truth) >= BOUND) for board in clear], axis=0)
    return " ".join(f"{_rates(called):<28}" for called in (worst, *ever, same)).rstrip()


def wrong(board: Verdicts, truth: Array) -> NDArray[np.bool_]:
    """Which stacks are called FASTER or SLOWER and are not by more than δ."""
    return ((board == FASTER) & (truth <= BOUND)) | ((board == SLOWER) & (truth >= -BOUND))


def _rates(called: NDArray[np.bool_]) -> str:
    boards = called.any(axis=1)
    return f"{100 * called.mean():.3f} / {100 * boards.mean():.2f} (≤ {100 * upper(int(boards.sum()), len(boards)):.2f})"


def upper(hits: int, draws: int) -> float:
    """Upper end of the 95 % interval of a rate (Clopper & Pearson 1934)."""
    return 1.0 if hits == draws else float(betaincinv(hits + 1, draws - hits, 0.975))


def coverage(draws: int, rng: np.random.Generator) -> None:
    """How often the 95 % interval that is shown holds the true ratio."""
    print("share of 95 % intervals that hold the true ratio, %")
    print(f"{'noise':<18} {''.join(f'{n:>4} rounds' for n in (3, 5, 10, 20))}")
    for name in (*NOISES, *ROUND_NOISES):
        shown = [f"{100 * covered(name, rng, draws, n):>11.1f}" for n in (3, 5, 10, 20)]
        print(f"{name:<18} {''.join(shown)}", flush=True)
    print(f"{draws} draws each; standard error of 95 %: ± {100 * math.sqrt(0.95 * 0.05 / draws):.1f} %")


def covered(name: str, rng: np.random.Generator, draws: int, rounds: int) -> float:
    """By the t interval of `ratio_interval`; of the noises of trials, on one stack of a board of five."""
    shuffled = name in NOISES
    rows = run_of(NOISES[name], rng, draws, 5, rounds)[:, 0] if shuffled else ROUND_NOISES[name](rng, (draws, rounds))
    half = t.ppf(0.975, rounds - 1) * rows.std(axis=1, ddof=1) / math.sqrt(rounds)
    return float((np.abs(rows.mean(axis=1)) <= half).mean())


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
    sizes = ((3, 1), (10, 1), (10, 6), (10, 30), (20, 1))
    for delta in (DELTA, 0.01):
        print(
            f"smallest slowdown called SLOWER in ≥ 90 % of runs (δ = {delta:.0%}), by rounds and (equal) stacks on the board, %"
        )
        heads = "".join(f"{f'{n} rounds, {stacks}':>14}" for n, stacks in sizes)
        print(f"paired noise  {heads}   5 % is called at 10 / 12 / 20")
        for sd in (0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.08):
            runs = {(n, stacks): sd * rng.normal(size=(draws, stacks, n)) for n, stacks in (*sizes, (12, 1))}
            small = "".join(f"{100 * smallest(runs[size], sd, delta):>14.1f}" for size in sizes)
            called = " / ".join(f"{share(runs[n, 1], 0.05, delta):.0%}" for n in (10, 12, 20))
            print(f"{sd:<14.1%}{small}   {called}", flush=True)
    print(f"{draws} runs each; standard error of 90 %: ± {100 * math.sqrt(0.9 * 0.1 / draws):.1f} %")


def share(logs: Array, slowdown: float, delta: float) -> float:
    """How often the first stack, slower by `slowdown`, is called SLOWER beside equal ones; `logs` is noise alone."""
    shifted = logs.copy()
    shifted[:, 0] -= math.log1p(slowdown)
    return float((verdicts(shifted, math.log1p(delta))[:, 0] == SLOWER).mean())


def smallest(logs: Array, sd: float, delta: float) -> float:
    """By bisection, to a fiftieth of the noise."""
    low, high = delta, delta + 60 * sd
    while high - low > sd / 50:
        middle = (low + high) / 2
        low, high = (low, middle) if share(logs, middle, delta) >= 0.9 else (middle, high)
    return high


PARTS = {
    "looks": (looks, 2000),
    "coverage": (coverage, 2000),
    "errors": (errors, 2000),
    "power": (power, 2000),
    "classes": (classes, 1000),
    "crossovers": (crossovers, 1000),
    "sessions": (sessions, 1000),
}


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
