"""Which slowdowns are seen: the formula against the board's own verdicts."""

import math

import numpy as np
import pytest

from effbench.board.power import smallest_slowdown
from effbench.board.stats import holm_intervals
from effbench.board.verdict import verdict


@pytest.mark.parametrize(("noise", "rounds"), [(0.015, 10), (0.05, 5)])
def test_the_smallest_slowdown_is_called_in_nine_of_ten_runs(noise, rounds):
    slowdown = smallest_slowdown(noise, rounds, 0.03)
    logs = np.random.default_rng(0).normal(-math.log1p(slowdown), noise, (1500, rounds))
    called = [verdict(holm_intervals([row], math.log1p(0.03))[0][1], 0.03) == "SLOWER" for row in logs]
    assert np.mean(called) == pytest.approx(0.9, abs=0.025)


def test_more_rounds_and_less_noise_see_smaller_ones():
    found = [smallest_slowdown(noise, rounds, 0.03) for noise, rounds in ((0.05, 5), (0.05, 10), (0.01, 10), (0.01, 20))]
    assert found == sorted(found, reverse=True)
    assert found[-1] > 0.03  # never within the margin


def test_two_rounds_see_nothing():
    assert smallest_slowdown(0.01, 2, 0.03) is None
