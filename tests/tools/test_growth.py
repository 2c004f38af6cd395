"""What the simulation of growth along the length shows, held to what docs/measuring.md promises."""

import growth
import numpy as np
import pytest


@pytest.mark.parametrize("sd", [0.02, 0.05])
@pytest.mark.parametrize("count", [4, 6])
@pytest.mark.parametrize("truth", ["constant", "n", "n + a", "n log n", "n√n", "n²"])
def test_the_true_class_is_supported(truth, count, sd):
    shares = growth.share_supported(truth, np.random.default_rng(0), 200, count, 3, sd)
    assert shares["n" if truth == "n + a" else truth] >= 0.95
    assert shares[growth.ROUGH] <= 0.05


@pytest.mark.parametrize("count", [3, 4, 6])
def test_a_square_is_never_taken_for_a_line_nor_a_line_for_a_square(count):
    square = growth.share_supported("n²", np.random.default_rng(1), 200, count, 3, 0.05)
    line = growth.share_supported("n", np.random.default_rng(1), 200, count, 3, 0.05)
    assert max(square["constant"], square["n"], square["n log n"]) == 0
    assert line["constant"] == 0
    assert line["n²"] <= 0.02


def test_what_lies_between_the_classes_is_marked():
    shares = growth.share_supported("n + n², equal at 4096", np.random.default_rng(2), 100, 6, 3, 0.02)
    assert shares[growth.ROUGH] >= 0.95


@pytest.mark.parametrize("rounds", [3, 10])
@pytest.mark.parametrize("true", growth.CROSSOVERS.values())
def test_the_interval_holds_the_crossover(true, rounds):
    held, wide = growth.covered(-0.3, 0.02, true, np.random.default_rng(3), 400, rounds)
    assert held >= 0.92
    assert (wide >= 0.95) == (true > 8192)
