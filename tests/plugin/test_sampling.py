import math
import random

import pytest

from effbench.plugin import Sampling
from effbench.plugin.sampling import enough, median_interval, summarize, warmup_length


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


def test_stops_for_the_interval_only_after_the_floors():
    rule = Sampling(min_samples=8, min_seconds=1.0, interval=0.05, max_seconds=100)
    assert enough([0.1] * 9, rule) is None  # too few seconds
    assert enough([0.125] * 10, rule) == "interval"
    assert enough([0.5] * 4, rule) is None  # too few samples
    noisy = [1.0, 2.0] * 10
    assert enough(noisy, rule) is None


def test_the_cap_beats_the_floors():
    assert enough([60.0, 50.0], Sampling(max_seconds=100)) == "cap"


def test_summaries_scale_and_leave_out_warm_up_only():
    summary = summarize([50.0, 2.0, 2.0, 2.0, 2.0, 2.0, 30.0, 2.0], "s", scale=2)
    assert summary.median == 1.0
    assert summary.n == 7  # the late outlier is kept, the first is warm-up
    assert summary.high == 15.0
    assert math.isclose(summary.low, 1.0)


def test_a_sampling_rule_is_validated():
    with pytest.raises(ValueError, match="min_samples"):
        Sampling(min_samples=1)
