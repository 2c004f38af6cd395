"""Sampling inside a trial: how long to warm up, when there is enough, and what the samples say."""

import math
from collections.abc import Sequence
from statistics import median

from effbench.plugin.cell import Sampling
from effbench.plugin.meter import Summary

_STEADY = 0.10  # three samples in a row within 10 % of the later median count as steady


def warmup_length(durations: Sequence[float]) -> int:
    """How many leading samples are warm-up: up to the first three in a row near the median of the later half.

    At most half of the samples are given up; caches, allocators and lazy initialisation settle within a few.
    """
    if len(durations) < 4:
        return 0
    settled = median(durations[len(durations) // 2 :])
    for start in range(len(durations) // 2):
        if all(abs(d - settled) <= _STEADY * settled for d in durations[start : start + 3]):
            return start
    return len(durations) // 2


def median_interval(samples: Sequence[float], level: float = 0.95) -> tuple[float, float] | None:
    """Distribution-free interval of the median from order statistics; None below 6 samples, where none exists.

    The ranks (k, n + 1 - k) cover the median with probability 1 - 2·P(Binomial(n, ½) < k); k is the largest that reaches
    `level` (Hahn & Meeker 1991, section 5.2).
    """
    n, tail, k = len(samples), 0.0, 0
    while k < n / 2 and (tail := tail + math.comb(n, k) / 2**n) <= (1 - level) / 2:
        k += 1
    ordered = sorted(samples)
    return (ordered[k - 1], ordered[n - k]) if k else None


def enough(samples: Sequence[float], rule: Sampling) -> str | None:
    """Why sampling may stop now ("interval", or "cap" where time ran out first), or None."""
    total = sum(samples)
    if total >= rule.max_seconds:
        return "cap"
    kept = samples[warmup_length(samples) :]
    if len(kept) < rule.min_samples or sum(kept) < rule.min_seconds:
        return None
    interval = median_interval(kept)
    middle = median(kept)
    return "interval" if interval and (interval[1] - interval[0]) / 2 <= rule.interval * middle else None


def summarize(samples: Sequence[float], unit: str, *, scale: float = 1.0, stopped: str | None = None) -> Summary:
    """Median and interval of the samples after warm-up, each divided by `scale`."""
    kept = [s / scale for s in samples[warmup_length(samples) :]]
    low, high = median_interval(kept) or (None, None)
    return Summary(median=median(kept), low=low, high=high, n=len(kept), unit=unit, stopped=stopped)
