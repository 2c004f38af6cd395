"""Which differences a number of rounds can show: the power of a verdict, given the noise between paired trials."""

import math

from effbench.board.stats import MIN_ROUNDS, VERDICT_LEVEL

POWER = 0.9


def smallest_slowdown(noise: float, rounds: int, delta: float, level: float = VERDICT_LEVEL, power: float = POWER) -> float:
    """The smallest true slowdown that is called SLOWER with probability `power`, as a share of the time: 0.05 is 5 % more.

    `noise` is the standard deviation s of per-round log ratios, taken as normal. SLOWER means that the 1 - level t interval of
    their mean lies wholly beyond log(1 + delta), so with a true log ratio d the test statistic follows a noncentral t
    distribution with n - 1 degrees of freedom and noncentrality (d - log(1 + delta))·√n / s (Cohen 1988, section 2). The
    noncentrality λ at which it passes t(n - 1, 1 - level / 2) with the wanted power gives d = log(1 + delta) + λ·s / √n.

    ValueError below MIN_ROUNDS, where there is no verdict.
    """
    if rounds < MIN_ROUNDS:
        raise ValueError(f"{rounds} rounds give no verdict: {MIN_ROUNDS} are the fewest")
    from scipy.special import nctdtrinc, stdtrit

    critical = float(stdtrit(rounds - 1, 1 - level / 2))
    noncentrality = float(nctdtrinc(rounds - 1, 1 - power, critical))
    return math.expm1(math.log1p(delta) + noncentrality * noise / math.sqrt(rounds))
