"""Intervals and tests over rounds. Ratios live on the log scale, where a halving and a doubling are equally far."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
DRAWS = 10_000
MIN_ROUNDS = 3
"""Below, no measured quantity gets a verdict: two rounds leave one degree of freedom, and an interval that says nothing."""
VERDICT_LEVEL = 0.0125
"""The nominal level of every verdict, at whatever number of rounds it is given.

A board is looked at again and again, by `--until-clear` and by people. Testing at a constant level each time is Pocock's (1977)
group-sequential design; 0.0125 is where a t test that is looked at after 3, 5, 8, 12 and 20 rounds errs in at most 5 % of all
runs, whatever δ is (`tools/simulate.py looks`). A stack that is truly at the margin δ can be called FASTER or SLOWER wrongly on
one side only, so with normal noise any eight looks, after whatever rounds, add up to at most 8 · 1.25 % / 2 = 5 % of boards.
The intervals shown beside verdicts are the plain 95 % ones.
"""


@dataclass(frozen=True)
class Interval:
    """An estimate, its interval (None where rounds are too few for one), and the number of rounds it rests on."""

    estimate: float
    low: float | None
    high: float | None
    n: int

    def relative_to(self, reference: float) -> "Interval":
        """The interval of 1 + d / reference, for an interval of a difference d."""
        low, high = (None if d is None else 1 + d / reference for d in (self.low, self.high))
        return Interval(1 + self.estimate / reference, low, high, self.n)


def mean_interval(values: Array, level: float = 0.95) -> Interval:
    """Mean of per-round values with its t interval: m ± t(n-1, (1+level)/2) · s/√n.

    A percentile bootstrap over so few rounds covers only 70-83 % (see docs); the t interval covers 93-96 %.
    """
    n = len(values)
    if n == 0:
        return Interval(math.nan, None, None, 0)
    mean = float(np.mean(values))
    if n == 1:
        return Interval(mean, None, None, 1)
    from scipy.special import stdtrit  # scipy.stats.t's quantile, without its half a second of import and 50 µs a call

    half = float(stdtrit(n - 1, (1 + level) / 2)) * standard_error(values)
    return Interval(mean, mean - half, mean + half, n)


def ratio_interval(log_ratios: Array, level: float = 0.95) -> Interval:
    """Geometric mean of per-round ratios with its interval: `mean_interval` on the log scale."""
    log = mean_interval(log_ratios, level)
    low, high = (None if end is None else math.exp(end) for end in (log.low, log.high))
    return Interval(math.exp(log.estimate), low, high, log.n)


def t_test_p(log_ratios: Array, bound: float) -> float:
    """The smallest α at which the 1-α t interval lies wholly beyond ±bound or wholly inside; 1 below MIN_ROUNDS.

    This inverts the interval, so `p ≤ α` and "the 1-α interval gives a clear verdict" are the same statement. For "inside" it
    is twice the p-value of two one-sided tests (Schuirmann 1987), because the whole two-sided interval must fit.
    """
    n = len(log_ratios)
    return 1.0 if n < MIN_ROUNDS else t_p(float(np.mean(log_ratios)), standard_error(log_ratios), n - 1, bound)


def t_p(mean: float, error: float, freedom: float, bound: float) -> float:
    """As `t_test_p`, of any mean log ratio with its standard error and degrees of freedom."""
    from scipy.special import stdtr

    distance = abs(abs(mean) - bound)
    if error == 0:
        return float(distance == 0)
    # Outside, the nearer bound must be excluded; inside, both: the nearer one decides.
    return min(1.0, 2 * float(stdtr(freedom, -distance / error)))


def holm(p_values: Sequence[float], alpha: float = VERDICT_LEVEL) -> list[float]:
    """The level at which Holm's step-down procedure tests each hypothesis: α/K for the smallest p, then α/(K-1), ….

    From the first that fails on, all are left at the level where it failed, so `p ≤ level` says which are rejected, and the
    family-wise error stays ≤ α whatever the dependence (Holm 1979).
    """
    levels = [0.0] * len(p_values)
    stopped_at = None
    for step, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        level = alpha / (len(p_values) - step) if stopped_at is None else stopped_at
        levels[index] = level
        if stopped_at is None and p_values[index] > level:
            stopped_at = level
    return levels


def holm_intervals(samples: Sequence[Array], bound: float) -> list[tuple[Interval, Interval]]:
    """For each stack's log ratios: the 95 % interval to show, and the adjusted one that its verdict rests on."""
    tested = [i for i, sample in enumerate(samples) if len(sample) >= MIN_ROUNDS]
    levels = dict(zip(tested, holm([t_test_p(samples[i], bound) for i in tested]), strict=True))
    return [(ratio_interval(s), ratio_interval(s, 1 - levels.get(i, VERDICT_LEVEL))) for i, s in enumerate(samples)]


@dataclass(frozen=True)
class QualityDraws:
    """Draws of a mean quality difference; empty where there is no interval."""

    estimate: float
    draws: Array
    rounds: int

    def interval(self, level: float = 0.95) -> Interval:
        """Percentiles of the draws."""
        if not len(self.draws):
            return Interval(self.estimate, None, None, self.rounds)
        low, high = np.quantile(self.draws, [(1 - level) / 2, (1 + level) / 2])
        return Interval(self.estimate, float(low), float(high), self.rounds)

    def p(self, low_bound: float, high_bound: float) -> float:
        """As `t_test_p`, by the share of draws on the wrong side; never below what the number of draws resolves."""
        if not len(self.draws) or self.rounds < MIN_ROUNDS:
            return 1.0
        above_low, above_high = (float(np.mean(self.draws >= bound)) for bound in (low_bound, high_bound))
        beyond, short_of, inside = 1 - above_high, above_low, max(1 - above_low, above_high)
        return min(1.0, 2 * max(min(beyond, short_of, inside), 1 / len(self.draws)))


def quality_draws(  # noqa: PLR0913, PLR0917 - what is drawn from, and how
    baseline: Array, other: Array, weights: Array, trained: bool, seed: int = 0, count: int = DRAWS
) -> QualityDraws:
    """`count` draws of the weighted mean of other - baseline, both (rounds, samples), paired per round and sample.

    Samples are resampled with replacement. Rounds differ only where training did: their part is drawn from the t distribution
    s_r/√R · t(R-1) of the per-round means, because resampling two or three rounds would cover far less than it says.
    Without training, rounds repeat the same evaluation and only samples count.
    """
    difference = other - baseline
    rounds, samples = difference.shape
    share = weights / weights.sum()
    per_round = difference @ share
    estimate = float(per_round.mean())
    if samples < 2 or (trained and rounds < 2):
        return QualityDraws(estimate, np.empty(0), rounds)
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(samples, np.full(samples, 1 / samples), size=count) * share
    draws = drawn @ difference.mean(axis=0) / drawn.sum(axis=1)
    if trained:
        draws = draws + standard_error(per_round) * generator.standard_t(rounds - 1, size=count)
    return QualityDraws(estimate, draws, rounds)


def paired_quality(baseline: Array, other: Array, weights: Array, trained: bool, seed: int = 0) -> Interval:
    """The 95 % interval of a mean quality difference, see `quality_draws`."""
    return quality_draws(baseline, other, weights, trained, seed).interval()


def standard_error(values: Array) -> float:
    """Of the mean of independent values: s/√n."""
    # Equal values leave rounding noise of 1e-17 in the mean; that is no spread.
    return 0.0 if np.ptp(values) == 0 else float(np.std(values, ddof=1)) / math.sqrt(len(values))
