"""Joint draws of several rows' means, which keep that rows are paired by round and by document."""

from collections.abc import Iterable, Mapping

import numpy as np

from effbench.board.stats import DRAWS, Array


class SharedNoise:
    """The random numbers that the draws of all rows and metrics share.

    Let x be the per-round values of one row and metric (log ratios to one reference, or differences of scores), R of them with
    mean m and standard deviation s, and x - m their deviations. With g ~ N(0, 1), one for each round and the same for all rows
    and metrics, the sum of (x - m)·g is N(0, (R-1)·s²); divided by √(R·c) with an independent c ~ χ²(R-1) it is

        s/√R · z / √(c/(R-1)),  z ~ N(0, 1)  =  s/√R · t(R-1),

    the distribution that `stats.mean_interval` takes its quantiles of: each marginal's percentiles are the ends of the board's
    own interval. The draws are linear in x, so the difference of two rows' draws over the same rounds is drawn from the
    t distribution of their paired differences, as when the two are ranked: what a round does to both alike cancels, and
    what it does to a row's speed and quality together stays together. Where rows have different rounds, the χ² of each number
    of them is the quantile of one uniform variable.
    """

    def __init__(self, rounds: Iterable[int], seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        self._uniform = generator.random(DRAWS)
        self._normal = {number: generator.standard_normal(DRAWS) for number in sorted({*rounds})}
        self._seed = seed
        self._drawn: dict[int, Array] = {}

    def of_rounds(self, values: Mapping[int, float]) -> Array:
        """Deviations of drawn means from the mean of the values, which are by round; two rounds at least."""
        numbers, x = [*values], np.array([*values.values()])
        if np.ptp(x) == 0:
            return np.zeros(DRAWS)
        from scipy.special import gammaincinv

        chi_squared = 2 * gammaincinv((len(x) - 1) / 2, self._uniform)
        total = sum(d * self._normal[number] for number, d in zip(numbers, x - x.mean(), strict=True))
        deviations: Array = total / np.sqrt(len(x) * chi_squared)
        return deviations

    def of_documents(self, differences: Array, weights: Array) -> Array:
        """Deviations of the weighted mean over resampled documents, the same ones for all rows: as `stats.quality_draws`."""
        share = weights / weights.sum()
        drawn = self._resampled(len(weights))
        means: Array = drawn @ (share * differences) / (drawn @ share)
        return means - float(differences @ share)

    def _resampled(self, samples: int) -> Array:
        if samples not in self._drawn:
            generator = np.random.default_rng(self._seed)
            self._drawn[samples] = generator.multinomial(samples, np.full(samples, 1 / samples), size=DRAWS).astype(float)
        return self._drawn[samples]
