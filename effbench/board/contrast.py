"""The ratio of two groups of measurements, paired or not, with its t interval on the log scale."""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from effbench.board.stats import MIN_ROUNDS, VERDICT_LEVEL, Array, Interval, holm, standard_error, t_p

_LARGEST = math.log(sys.float_info.max)


@dataclass(frozen=True)
class Contrast:
    """A mean log ratio new / old, and what its interval is made of."""

    log: float
    error: float
    """Standard error of `log`; NaN where there are too few values for one."""
    freedom: float
    """Degrees of freedom of the error."""
    n: int
    """Values on the side that has fewer."""

    def interval(self, level: float = 0.95) -> Interval:
        """Of the ratio."""
        if math.isnan(self.error):
            return Interval(exp(self.log), None, None, self.n)
        from scipy.special import stdtrit

        half = float(stdtrit(self.freedom, (1 + level) / 2)) * self.error
        return Interval(exp(self.log), exp(self.log - half), exp(self.log + half), self.n)

    def p(self, bound: float) -> float:
        """The smallest α at which the 1-α interval lies wholly beyond ±bound or wholly inside; 1 below MIN_ROUNDS."""
        return 1.0 if self.n < MIN_ROUNDS else t_p(self.log, self.error, self.freedom, bound)


def paired(old: Array, new: Array) -> Contrast:
    """Of values that belong together one by one, natural logarithms both: Student's t on their differences."""
    differences, n = new - old, len(old)
    return Contrast(float(differences.mean()), standard_error(differences) if n > 1 else math.nan, n - 1, n)


def unpaired(old: Array, new: Array) -> Contrast:
    """Of two independent groups of natural logarithms, which may scatter differently: Welch's t (Welch 1947).

    The error is √(s₁²/n₁ + s₂²/n₂), with Satterthwaite's (1946) degrees of freedom,
    (s₁²/n₁ + s₂²/n₂)² / ((s₁²/n₁)²/(n₁-1) + (s₂²/n₂)²/(n₂-1)).
    """
    log, n = float(new.mean() - old.mean()), min(len(old), len(new))
    if n < 2:
        return Contrast(log, math.nan, math.nan, n)
    parts = np.array([standard_error(values) ** 2 for values in (old, new)])
    rest = np.array([len(old) - 1, len(new) - 1])
    variance = float(parts.sum())
    freedom = variance**2 / float((parts**2 / rest).sum()) if variance else float(rest.sum())
    return Contrast(log, math.sqrt(variance), freedom, n)


def exp(log: float) -> float:
    """E to that power; infinite where it is more than a float holds, as ends of very wide intervals are."""
    return math.exp(log) if log < _LARGEST else math.inf


def holm_contrasts(contrasts: Sequence[Contrast], bound: float) -> list[tuple[Interval, Interval]]:
    """For each, the 95 % interval to show, and the one its verdict rests on: Holm-adjusted over those with enough rounds."""
    tested = [i for i, contrast in enumerate(contrasts) if contrast.n >= MIN_ROUNDS]
    levels = dict(zip(tested, holm([contrasts[i].p(bound) for i in tested]), strict=True))
    return [(c.interval(), c.interval(1 - levels.get(i, VERDICT_LEVEL))) for i, c in enumerate(contrasts)]
