import numpy as np
import pytest

from effbench.board.power import POWER, smallest_slowdown
from effbench.board.stats import VERDICT_LEVEL, ratio_interval
from effbench.board.verdict import SPEED, verdict

DELTA = 0.03


@pytest.mark.parametrize(("noise", "rounds", "level"), [(0.01, 3, VERDICT_LEVEL), (0.02, 5, VERDICT_LEVEL), (0.015, 10, 0.05)])
def test_the_verdict_is_given_as_often_as_promised(noise, rounds, level):
    slowdown = smallest_slowdown(noise, rounds, DELTA, level)
    draws = np.random.default_rng(1).normal(-np.log1p(slowdown), noise, size=(2000, rounds))
    slower = [verdict(ratio_interval(ratios, 1 - level), DELTA) == SPEED.bad for ratios in draws]
    assert np.mean(slower) == pytest.approx(POWER, abs=0.025)  # four standard errors


def test_less_noise_more_rounds_and_a_laxer_level_see_more_and_nothing_within_delta():
    usual = smallest_slowdown(0.01, 10, DELTA)
    assert DELTA < smallest_slowdown(0.005, 10, DELTA) < usual < smallest_slowdown(0.01, 5, DELTA)
    assert smallest_slowdown(0.01, 10, DELTA, level=0.05) < usual
    assert smallest_slowdown(0.0, 3, DELTA) == pytest.approx(DELTA)


def test_two_rounds_give_no_verdict():
    with pytest.raises(ValueError, match="3 are the fewest"):
        smallest_slowdown(0.01, 2, DELTA)
