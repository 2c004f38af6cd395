import math
import random

import pytest

from effbench.plugin import Sampling, Summary
from effbench.plugin.sampling import Sampler, count_outliers, median_interval, summarize, warmup_length


def test_a_slow_start_is_warm_up_and_a_steady_one_is_not():
    assert warmup_length([9.0, 5.0, 1.0, 1.01, 0.99, 1.0, 1.0, 1.02]) == 2
    assert warmup_length([1.0, 1.01, 0.99, 1.0, 1.0]) == 0
    assert warmup_length([3.0, 1.0]) == 0


def test_at_most_half_is_given_up():
    assert warmup_length([2.0 ** (10 - i) for i in range(10)]) == 5


def test_no_interval_exists_below_six_samples():
    assert median_interval([1.0] * 5) is None
    assert median_interval([1, 2, 3, 4, 5, 6]) == (1, 6)


def test_the_interval_covers_the_median():
    rng = random.Random(3)
    covered = 0
    for _ in range(1000):
        low, high = median_interval([rng.lognormvariate(0, 0.5) for _ in range(15)])
        covered += low <= 1.0 <= high
    assert covered >= 950


def stopped(samples, rule):
    """When a sampler that is asked after every sample stops, and why."""
    sampler = Sampler(rule)
    for count, seconds in enumerate(samples, 1):
        sampler.add(seconds)
        if reason := sampler.enough():
            return count, reason
    return None


def test_noise_is_not_taken_for_warm_up():
    rng = random.Random(5)
    lengths = [warmup_length([rng.gauss(1, 0.2) for _ in range(100)]) for _ in range(200)]
    assert sum(length == 0 for length in lengths) >= 190
    assert warmup_length([20.0, 12.0] + [rng.lognormvariate(0, 0.2) for _ in range(100)]) == 2


def test_the_interval_of_many_samples_is_the_exact_one():
    from scipy.stats import binom

    from effbench.plugin.sampling import _lower_rank

    for n in (6, 7, 50, 999, 100_000):
        k = _lower_rank(n, 0.95)
        assert 2 * binom.cdf(k - 1, n, 0.5) <= 0.05 < 2 * binom.cdf(k, n, 0.5)


def test_stops_for_the_interval_only_after_the_floors():
    rule = Sampling(min_samples=8, min_seconds=1.0, interval=0.05, max_seconds=100)
    assert stopped([0.1] * 9, rule) is None  # too few seconds
    assert stopped([0.125] * 10, rule) == (8, "interval")
    assert stopped([0.5] * 4, rule) is None  # too few samples
    noisy = [1.0, 2.0] * 10
    assert stopped(noisy, rule) is None


def test_floors_count_steady_samples_alone():
    rule = Sampling(min_samples=8, min_seconds=1.0, interval=0.05, max_seconds=100)
    # Eight steady ones are there with the 11th; the looks are at 8, 9, 10 and 12.
    assert stopped([5.0, 3.0, 2.0] + [0.125] * 20, rule) == (12, "interval")


def test_the_cap_beats_the_floors():
    assert stopped([60.0, 50.0], Sampling(max_seconds=100)) == (2, "cap")


def test_deciding_looks_at_the_samples_a_logarithmic_number_of_times(monkeypatch):
    looks = []
    monkeypatch.setattr(Sampler, "_look", lambda self: looks.append(len(self.samples)) or False)
    assert stopped([1e-6] * 100_000, Sampling(min_samples=10, min_seconds=0.0, max_seconds=1.0)) is None
    assert looks[:8] == [10, 12, 14, 16, 19, 22, 26, 31]
    assert len(looks) <= 2 * math.log(100_000 / 10) / math.log(1.2)


def test_outliers_lie_beyond_the_far_fences():
    steady = [1.0 + 0.01 * (i % 10) for i in range(100)]
    assert count_outliers(steady) == 0
    assert count_outliers([*steady, 1.15, 5.0, 0.2]) == 2
    assert count_outliers([1.0] * 50 + [1.001] * 3 + [2.0]) == 1  # a hair's breadth beside a steady timer is none


def test_summaries_scale_and_leave_out_warm_up_only():
    summary = summarize([50.0, 2.0, 2.0, 2.0, 2.0, 2.0, 30.0, 2.0], "s", scale=2)
    assert summary.median == 1.0
    assert summary.n == 7  # the late outlier is kept, the first is warm-up
    assert (summary.warmup, summary.outliers) == (1, 1)
    assert summary.high == 15.0
    assert math.isclose(summary.low, 1.0)


def test_a_record_holds_counts_exactly_and_times_in_nine_digits():
    written = summarize([1 / 3] * 8, "s").model_dump_json(exclude_none=True)
    assert '"median":0.333333333,' in written
    assert '"median":123456789012,' in Summary(median=123456789012.0, unit="B").model_dump_json()


def test_a_sampling_rule_is_validated():
    with pytest.raises(ValueError, match="min_samples"):
        Sampling(min_samples=1)
