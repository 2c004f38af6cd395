import math

import numpy as np
import pytest

from effbench.board.stats import Interval, QualityDraws
from effbench.board.verdict import QUALITY, SIZE, SPEED, clearly_better, quality_verdicts, verdict
from tests.board.test_leaderboard import SETTINGS, board_of, trials


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(1.03, 1.2, "FASTER"), (0.8, 0.97, "SLOWER"), (0.99, 1.01, "SAME"), (1.01, 1.03, "UNCLEAR"), (0.5, 2.0, "UNCLEAR")],
)
def test_speed(low, high, expected):
    assert verdict(Interval(math.sqrt(low * high), low, high, 3), 0.02) == expected


def test_swapping_the_stacks_swaps_the_verdict():
    for low, high in ((1.0201, 1.5), (1.019, 1.5), (1.0, 1.0199)):
        word = verdict(Interval(1.2, low, high, 3), 0.02)
        swapped = verdict(Interval(1 / 1.2, 1 / high, 1 / low, 3), 0.02)
        assert swapped == {"FASTER": "SLOWER"}.get(word, word)


def test_words_and_directions():
    smaller = Interval(0.5, 0.4, 0.6, 3)
    assert verdict(smaller, 0.02, "lower", SIZE) == "SMALLER"
    assert verdict(smaller, 0.02, "lower", QUALITY) == "BETTER"
    assert verdict(smaller, 0.02, "higher", QUALITY) == "WORSE"
    assert clearly_better(smaller, 0.02, "lower") == 1
    assert clearly_better(smaller, 0.02, "higher") == -1


def test_one_round_is_unclear_unless_exact():
    assert verdict(Interval(9.0, None, None, 1), 0.02, "higher", SPEED) == "UNCLEAR"
    assert verdict(Interval(9.0, 8.9, 9.1, 1), 0.02) == "UNCLEAR"
    assert verdict(Interval(0.01, None, None, 1), 0.02, "lower", SIZE, exact=True) == "SMALLER"
    assert verdict(Interval(1.0, None, None, 1), 0.02, "lower", SIZE, exact=True) == "SAME"
    assert verdict(Interval(math.nan, None, None, 1), 0.02, exact=True) == "UNCLEAR"


@pytest.mark.parametrize("reference", [-2.0, 2.0])
def test_scores_below_zero_are_judged_the_right_way_round(reference):
    noise = np.random.default_rng(0).normal(0, 0.001, 10_000)
    differences = {
        word: (QualityDraws(change, change + noise, 3), reference)
        for word, change in {"BETTER": 0.5, "WORSE": -0.5, "SAME": 0.0}.items()
    }
    assert quality_verdicts(differences, 0.05, "higher") == {word: word for word in differences}


def test_a_floor_holds_for_scores_below_zero():
    """Log-likelihoods, of which -2.5 is higher than -4: one that is clearly lower must not be ranked."""
    records = [
        record.model_copy(update={"quality": record.quality.model_copy(update={"scores": {"log_likelihood": score}})})
        for record in trials()
        for score in [-4.0 if record.cell.stack == "same" else -2.5]
    ]
    board = board_of(records, SETTINGS | {"quality": {"metric": "log_likelihood", "better": "higher", "floor": 1.05}})
    assert board.rows.set_index("stack")["status"].to_dict() == {"full": "ok", "fast": "ok", "same": "below quality floor"}
