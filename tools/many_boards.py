"""The board's verdicts on thousands of made-up boards at once; a test holds them equal to the board's own.

Arrays are (boards, stacks, rounds) of log ratios to the baseline; `seen` says which rounds a stack has.
"""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr

from effbench.board.clarity import LOOKS
from effbench.board.stats import MIN_ROUNDS, VERDICT_LEVEL

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Verdicts = NDArray[np.int8]
FASTER, SLOWER, SAME, UNCLEAR = 1, -1, 2, 0


def verdicts(logs: Array, bound: float, seen: Mask | None = None) -> Verdicts:
    """(boards, stacks): `holm_intervals` and `verdict`, for ratios that are better when higher."""
    p, claim = _claims(logs, bound, np.ones(logs.shape, bool) if seen is None else seen)
    return np.where(_rejected(p), claim, UNCLEAR).astype(np.int8)


def _claims(logs: Array, bound: float, seen: Mask) -> tuple[Array, NDArray[np.int_]]:
    """`t_test_p` (NaN below the rounds that a verdict takes), and what would be said if it is small enough."""
    n = seen.sum(axis=-1)
    mean = np.where(seen, logs, 0).sum(axis=-1) / np.maximum(n, 1)
    squares = (np.where(seen, logs - mean[..., None], 0) ** 2).sum(axis=-1)
    error = np.sqrt(squares / np.maximum(n - 1, 1) / np.maximum(n, 1))
    distance = np.abs(np.abs(mean) - bound)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = np.where(error > 0, np.minimum(1, 2 * stdtr(np.maximum(n - 1, 1), -distance / error)), distance == 0)
    return np.where(n < MIN_ROUNDS, np.nan, p), np.where(np.abs(mean) <= bound, SAME, np.sign(mean)).astype(int)


def _rejected(p: Array) -> Mask:
    """`holm`: which hypotheses of each board are given up. Stacks of too few rounds are no part of the family."""
    order = np.argsort(p, axis=-1)  # NaN last
    remaining = np.isfinite(p).sum(axis=-1, keepdims=True) - np.arange(p.shape[-1])
    levels = VERDICT_LEVEL / np.maximum(remaining, 1)
    passed = np.logical_and.accumulate(np.take_along_axis(p, order, axis=-1) <= levels, axis=-1)
    result = np.empty_like(passed)
    np.put_along_axis(result, order, passed, axis=-1)
    return result


def until_clear(logs: Array, bound: float) -> tuple[list[Verdicts], Mask]:
    """The board at each look of `--until-clear`, and the rounds that each stack got.

    As in the run's own loop: what is UNCLEAR at a look gets the rounds up to the next, what is clear gets none. A clear stack
    can become UNCLEAR again when others of its family change; it then goes on from there, without the rounds it missed.
    """
    seen = np.zeros(logs.shape, bool)
    seen[..., : LOOKS[0]] = True
    found = [verdicts(logs, bound, seen)]
    for last, look in pairwise(LOOKS):
        seen[..., last:look] = (found[-1] == UNCLEAR)[..., None]
        found.append(verdicts(logs, bound, seen))
    return found, seen


def every_round(logs: Array, bound: float) -> Iterator[Verdicts]:
    """The board as somebody sees it who looks after each round."""
    for n in range(MIN_ROUNDS, logs.shape[-1] + 1):
        yield verdicts(logs[..., :n], bound)
