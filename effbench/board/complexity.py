"""Which complexity classes measured costs support: a + b·g(n) for each class g, compared by Akaike's criterion."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from effbench.board.stats import MIN_ROUNDS, Array

CONSTANT = "constant"
CLASSES: dict[str, Callable[[Array], Array] | None] = {
    CONSTANT: None,
    "n": lambda n: n,
    "n log n": lambda n: n * np.log(n),
    "n√n": lambda n: n**1.5,
    "n²": lambda n: n**2,
}
MIN_LIKELIHOOD = 0.05
"""Of a class relative to the best one, for it to count as supported."""
ROUGH = 0.01
"""Level of the F test of what the best class leaves over against the noise (lack of fit)."""
_RESOLUTION = 1e-6
"""Relative; costs that agree to this are equal, whatever the noise: records keep nine digits."""


class Support(NamedTuple):
    """What a fit of all classes says."""

    classes: tuple[str, ...] = ()
    rough: bool = False
    """Whether the best class leaves clearly more than the noise, so that the costs lie beside or between the classes."""

    @property
    def words(self) -> str:
        """`n, n log n`, or `≈ n` where the classes are no more than the nearest ones."""
        return ("≈ " if self.rough else "") + ", ".join(self.classes)


def supported(lengths: Array, logs: Array) -> Support:
    """The classes that log costs (rounds, lengths) support; none below MIN_ROUNDS, where the noise is not known well enough.

    Each class is fitted to the means over rounds, a, b ≥ 0, by least squares of the relative errors. With RSS the sum of their
    squares, v their variance and K parameters (1 for a constant, 2 for the others), a class has the likelihood exp(-Δ/2)
    relative to the best, Δ its distance in RSS/v + 2K (Burnham & Anderson 2002, sections 2.5 and 2.9). v is that of the
    measurement, estimated over rounds, or what the best class leaves over where that is more (their ĉ): so no class is
    rejected because another follows the noise better, nor because none of them is quite true.

    A constant lies in every class (b = 0), so where it is the best there is no growth to tell a class from, and it stands
    alone. Where it is only not excluded, because the noise is large, nothing is.
    """
    rounds, count = logs.shape
    if rounds < MIN_ROUNDS:
        return Support()
    costs = np.exp(logs.mean(axis=0) - logs.mean())
    parameters = {name: 1 if name == CONSTANT else 2 for name in CLASSES}
    left = {name: _residual(costs, None if growth is None else growth(lengths)) for name, growth in CLASSES.items()}
    best, freedom = min((left[name] / (count - parameters[name]), count - parameters[name]) for name in CLASSES)
    noise = max(_noise(logs), _RESOLUTION**2)
    criterion = {name: left[name] / max(noise, best) + 2 * parameters[name] for name in CLASSES}
    limit = min(criterion.values()) - 2 * math.log(MIN_LIKELIHOOD)
    found = tuple(name for name in CLASSES if criterion[name] <= limit)
    rough = _f_test_p(best / noise, freedom, (rounds - 1) * (count - 1)) < ROUGH
    return Support((CONSTANT,) if criterion[CONSTANT] == min(criterion.values()) else found, rough)


def _f_test_p(ratio: float, freedom: int, noise_freedom: int) -> float:
    from scipy.special import fdtrc

    return float(fdtrc(freedom, noise_freedom, ratio))


def _noise(logs: Array) -> float:
    """Variance of a length's mean over rounds; what a round adds to all lengths alike changes no shape and is taken out."""
    rounds, count = logs.shape
    rest = logs - logs.mean(axis=0) - logs.mean(axis=1, keepdims=True) + logs.mean()
    return float((rest**2).sum() / ((rounds - 1) * (count - 1) * rounds))


def _residual(costs: Array, growth: Array | None) -> float:
    """The smallest sum of squared relative errors of a + b·growth with a, b ≥ 0."""
    terms = np.ones((len(costs), 1)) if growth is None else np.stack([np.ones(len(costs)), growth / growth.max()], axis=1)
    design = terms / costs[:, None]
    # Where the free optimum has a negative coefficient, the constrained one lies where that coefficient is 0.
    tried = [_least_squares(design), *(_least_squares(design[:, [i]]) for i in range(terms.shape[1]))]
    return min(rest for rest, possible in tried if possible)


def _least_squares(design: Array) -> tuple[float, bool]:
    """The sum of squares that is left of ones, and whether no coefficient is negative."""
    ones = np.ones(len(design))
    coefficients = np.linalg.lstsq(design, ones, rcond=None)[0]
    return float(((design @ coefficients - ones) ** 2).sum()), bool((coefficients >= 0).all())
