"""Which differences a number of rounds can tell, for the paired noise of a machine."""

import math

from effbench.board.stats import MIN_ROUNDS, VERDICT_LEVEL


def smallest_slowdown(noise: float, rounds: int, delta: float, power: float = 0.9) -> float | None:
    """The smallest slowdown (0.05: 5 % slower) that a lone stack is called SLOWER for with this probability.

    `noise` is the standard deviation of per-round log ratios. The verdict needs (m - log(1+δ)) / (s/√n) > t(n-1, 1-α/2), whose
    left side has a noncentral t distribution with n-1 degrees of freedom. None below the rounds that a verdict takes.
    """
    if rounds < MIN_ROUNDS:
        return None
    from scipy.optimize import brentq
    from scipy.stats import nct, t

    critical = t.isf(VERDICT_LEVEL / 2, rounds - 1)

    def shortfall(noncentrality: float) -> float:
        return float(nct.sf(critical, rounds - 1, noncentrality)) - power

    needed = float(brentq(shortfall, 0.0, 20.0 * critical))
    return math.expm1(math.log1p(delta) + needed * noise / math.sqrt(rounds))
