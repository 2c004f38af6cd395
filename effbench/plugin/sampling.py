"""Sampling inside a trial: when it is warm, when there is enough, and what the samples say."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from effbench.plugin.cell import Sampling
from effbench.plugin.meter import Summary

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

_STEADY = 0.10  # as near the settled median counts as steady, however little the later samples scatter
_ROBUST_SD = 1.4826  # × median absolute deviation = standard deviation, for normal noise
_FAR_FENCE = 3.0  # interquartile ranges beyond the quartiles (Tukey 1977, Exploratory Data Analysis, section 2D)
_TRIVIAL = 0.01  # differences of a steady timer that are no outliers, relative to the median
_LOOK_GROWTH = 0.1  # deciding costs a sort, so it is done each time the samples have grown by this share


class Sampler:
    """The durations of one timed action as they come, and whether there are enough: the same answer on every rank."""

    def __init__(self, rule: Sampling) -> None:
        self.samples: list[float] = []
        self._rule = rule
        self._seconds = 0.0
        self._next_look = rule.min_samples
        self._steady_enough = False

    def add(self, seconds: float) -> None:
        """Take one more sample."""
        self.samples.append(seconds)
        self._seconds += seconds

    def enough(self) -> Literal["interval", "cap"] | None:
        """Why sampling may stop now, or None: go on.

        "cap" where time ran out, whatever the floors say. "interval" where the samples after warm-up reach both floors and the
        interval of their median is as narrow as the rule asks. Cheap: it looks at the samples only when a tenth more have come.
        """
        if self._seconds >= self._rule.max_seconds:
            return "cap"
        count = len(self.samples)
        if self._seconds >= self._rule.min_seconds and count >= self._next_look:
            self._next_look = count + max(1, int(_LOOK_GROWTH * count))
            self._steady_enough = self._look()
        return "interval" if self._steady_enough else None

    def _look(self) -> bool:
        import numpy as np

        kept = np.asarray(self.samples[warmup_length(self.samples) :])
        if len(kept) < self._rule.min_samples or kept.sum() < self._rule.min_seconds:
            return False
        interval = median_interval(kept)
        return interval is not None and interval[1] - interval[0] <= 2 * self._rule.interval * float(np.median(kept))


def warmup_length(durations: Sequence[float]) -> int:
    """How many leading samples are warm-up: up to the first three in a row that are like the later half.

    Like it means within 10 % of its median, or within three robust standard deviations where it scatters more, so that noise
    is not taken for warm-up. At most half of the samples are given up, and none of fewer than four.
    """
    import numpy as np

    half = len(durations) // 2
    if half < 2:
        return 0
    later = np.asarray(durations[half:])
    settled = float(np.median(later))
    tolerance = max(_STEADY * settled, 3 * _ROBUST_SD * float(np.median(np.abs(later - settled))))
    for start in range(half):
        if all(abs(d - settled) <= tolerance for d in durations[start : start + 3]):
            return start
    return half


def median_interval(samples: "Sequence[float] | Array", level: float = 0.95) -> tuple[float, float] | None:
    """Distribution-free interval of the median from order statistics; None below 6 samples, where none exists.

    The ranks (k, n + 1 - k) cover the median with probability 1 - 2·P(Binomial(n, ½) < k); k is the largest that reaches
    `level` (Hahn & Meeker 1991, section 5.2).
    """
    import numpy as np

    n = len(samples)
    k = _lower_rank(n, level)
    if not k:
        return None
    ordered = np.partition(np.asarray(samples, dtype=float), (k - 1, n - k))
    return float(ordered[k - 1]), float(ordered[n - k])


@lru_cache(maxsize=1024)
def _lower_rank(n: int, level: float) -> int:
    """The largest k with 2·P(Binomial(n, ½) < k) ≤ 1 - level; the tail below ten standard deviations is nothing."""
    k, tail = max(0, int(n / 2 - 5 * math.sqrt(n))), 0.0
    while k < n / 2:
        tail += math.exp(math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2))
        if tail > (1 - level) / 2:
            break
        k += 1
    return k


def count_outliers(samples: "Sequence[float] | Array") -> int:
    """How many samples lie beyond Tukey's far fences: 3 interquartile ranges, or 1 % of the median, outside the quartiles.

    They are counted, never dropped: a pause of the machine belongs to what its user sees.
    """
    import numpy as np

    values = np.asarray(samples, dtype=float)
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    reach = max(_FAR_FENCE * (high - low), _TRIVIAL * abs(middle))
    return int(np.count_nonzero((values < low - reach) | (values > high + reach)))


def summarize(samples: Sequence[float], unit: str, *, scale: float = 1.0, stopped: str | None = None) -> Summary:
    """Median and interval of the samples after warm-up, each divided by `scale`; outliers counted and kept."""
    import numpy as np

    warmup = warmup_length(samples)
    kept = np.asarray(samples[warmup:], dtype=float) / scale
    low, high = median_interval(kept) or (None, None)
    return Summary(
        median=float(np.median(kept)),
        low=low,
        high=high,
        n=len(kept),
        unit=unit,
        stopped=stopped,
        warmup=warmup,
        outliers=count_outliers(kept),
    )
