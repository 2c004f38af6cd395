import math

import numpy as np
import pytest

from effbench.board.stats import (
    DRAWS,
    VERDICT_LEVEL,
    holm,
    holm_intervals,
    paired_quality,
    quality_draws,
    ratio_interval,
    t_test_p,
)


@pytest.mark.parametrize("rounds", [3, 5, 10])
def test_t_interval_covers(rounds):
    truth = 1.2
    logs = math.log(truth) + np.random.default_rng(rounds).normal(0, 0.05, size=(1000, rounds))
    intervals = [ratio_interval(sample) for sample in logs]
    covered = np.mean([i.low <= truth <= i.high for i in intervals])
    assert 0.92 <= covered <= 0.98


def test_ratio_interval_by_hand():
    interval = ratio_interval(np.log([2.0, 8.0]))
    assert interval.estimate == pytest.approx(4)
    # t(1, 0.975) = 12.7062, s = ln 4 / √2, s / √2 = ln 2
    assert interval.high == pytest.approx(4 * math.exp(12.7062047 * math.log(2)), rel=1e-6)
    assert interval.low == pytest.approx(16 / interval.high)


def test_too_few_rounds_have_no_interval():
    assert ratio_interval(np.log([2.0])).low is None
    assert math.isnan(ratio_interval(np.array([])).estimate)
    assert t_test_p(np.log([2.0]), 0.02) == 1.0


def test_p_is_where_the_interval_becomes_clear():
    bound, rng = math.log1p(0.02), np.random.default_rng(1)
    for mean in (-0.1, 0.0, 0.019, 0.021, 0.1):
        sample = mean + rng.normal(0, 0.004, 6)
        p = t_test_p(sample, bound)
        for level, clear in ((1 - 1.01 * p, True), (1 - 0.99 * p, False)):
            if 0 < level < 1:
                i = ratio_interval(sample, level)
                low, high = math.log(i.low), math.log(i.high)
                assert (low > bound or high < -bound or (low > -bound and high < bound)) == clear


def test_equal_rounds_are_certain():
    assert t_test_p(np.array([0.5, 0.5, 0.5]), 0.02) == 0
    assert t_test_p(np.array([0.02, 0.02, 0.02]), 0.02) == 1
    assert t_test_p(np.array([0.5, 0.5]), 0.02) == 1  # two rounds never give a verdict


def test_holm_levels():
    assert holm([0.04, 0.001, 0.02], 0.05) == pytest.approx([0.05, 0.05 / 3, 0.025])
    assert holm([0.04, 0.001, 0.03], 0.05) == pytest.approx([0.025, 0.05 / 3, 0.025])  # 0.03 fails at 0.025, and 0.04 with it
    assert holm([]) == []
    assert holm([0.9]) == [VERDICT_LEVEL]


def test_a_board_that_is_looked_at_again_and_again_rarely_errs():
    rng, bound, wrong = np.random.default_rng(3), 0.0, 0  # no margin at all: the hardest case
    for _ in range(400):
        samples = rng.normal(0, 1, size=(5, 12))
        looks = (holm_intervals(list(samples[:, :n]), bound) for n in (3, 5, 8, 12))
        wrong += any(i.low > 1 or i.high < 1 for look in looks for _, i in look)
    assert wrong / 400 <= 0.08


def test_a_single_look_at_the_plain_level_would_err_more():
    rng, wrong = np.random.default_rng(3), 0
    for sample in rng.normal(0, 1, size=(400, 12)):
        wrong += any(t_test_p(sample[:n], 0.0) <= 0.05 for n in range(3, 13))
    assert wrong / 400 > 0.1


def test_untrained_quality_pairs_samples():
    rng = np.random.default_rng(0)
    base = np.tile(rng.normal(2.5, 1.0, 100), (2, 1))
    other = base + np.tile(rng.normal(0.05, 0.01, 100), (2, 1))
    interval = paired_quality(base, other, np.ones(100), trained=False)
    assert interval.low > 0.04
    assert interval.high < 0.06  # pairing takes out the spread of 1.0 between documents
    assert interval == paired_quality(base, other, np.ones(100), trained=False)


def test_weights_count():
    base, other = np.zeros((1, 2)), np.array([[1.0, 0.0]])
    assert paired_quality(base, other, np.array([3.0, 1.0]), trained=False).estimate == pytest.approx(0.75)


def test_trained_quality_covers_at_three_rounds():
    rng, covered = np.random.default_rng(5), 0
    for seed in range(300):
        difference = 0.1 + rng.normal(0, 0.03, (3, 1)) + rng.normal(0, 0.1, 50) + rng.normal(0, 0.02, (3, 50))
        interval = paired_quality(np.zeros((3, 50)), difference, np.ones(50), trained=True, seed=seed)
        covered += interval.low <= 0.1 <= interval.high
    assert covered / 300 >= 0.92


def test_one_trained_round_has_no_interval():
    interval = paired_quality(np.zeros((1, 9)), np.ones((1, 9)), np.ones(9), trained=True)
    assert interval.estimate == pytest.approx(1)
    assert (interval.low, interval.n) == (None, 1)


def test_draws_p_sees_both_sides():
    rng = np.random.default_rng(0)
    found = quality_draws(np.zeros((3, 200)), np.tile(rng.normal(0.3, 0.05, 200), (3, 1)), np.ones(200), trained=False)
    assert found.p(-0.05, 0.05) == pytest.approx(2 / DRAWS)
    assert found.p(-0.5, 0.5) == pytest.approx(2 / DRAWS)
    assert found.p(-0.3, 0.3) > 0.2
