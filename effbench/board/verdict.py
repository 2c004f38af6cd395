"""Words for what an interval of a ratio says against the baseline."""

import math
from collections.abc import Hashable, Mapping
from typing import Literal, NamedTuple, TypeVar

from effbench.board.stats import MIN_ROUNDS, Interval, QualityDraws, holm

_Label = TypeVar("_Label", bound=Hashable)

Better = Literal["lower", "higher"]
SAME = "SAME"
UNCLEAR = "UNCLEAR"


class Words(NamedTuple):
    """How a clear advantage and a clear disadvantage are called."""

    good: str
    bad: str


SPEED = Words("FASTER", "SLOWER")
SIZE = Words("SMALLER", "LARGER")
QUALITY = Words("BETTER", "WORSE")
AMOUNT = Words("LOWER", "HIGHER")
"""Of what is neither good nor bad by itself, with better = "lower"."""


def verdict(interval: Interval, delta: float, better: Better = "higher", words: Words = SPEED, *, exact: bool = False) -> str:
    """What a ratio to the baseline says: wholly beyond 1+δ or below 1/(1+δ), wholly between them (SAME), or UNCLEAR.

    The bounds are symmetric on the log scale: swapping the two stacks swaps the verdict. A measured quantity of fewer than
    MIN_ROUNDS rounds is always UNCLEAR; an `exact` one, the same in every round, needs no interval.
    """
    low, high = (interval.estimate, interval.estimate) if exact else (interval.low, interval.high)
    if low is None or high is None or math.isnan(interval.estimate) or (interval.n < MIN_ROUNDS and not exact):
        return UNCLEAR
    upper = 1 + delta
    lower = 1 / upper
    if low > upper or high < lower:
        return words.good if (low > upper) == (better == "higher") else words.bad
    return SAME if low >= lower and high <= upper else UNCLEAR


def clearly_better(interval: Interval, delta: float, better: Better) -> int:
    """1 if the ratio is clearly to the first one's advantage, -1 if to the second one's, 0 if the data cannot order them."""
    return {SPEED.good: 1, SPEED.bad: -1}.get(verdict(interval, delta, better, SPEED), 0)


def quality_verdicts(
    differences: Mapping[_Label, tuple[QualityDraws, float]], delta: float, better: Better
) -> dict[_Label, str]:
    """What differences in a score say, each with the score that it is relative to; Holm-adjusted over all of them.

    δ is relative: a difference counts from δ times the reference on, as bounds of the ratio 1 + difference / |reference|. So a
    higher score has the larger ratio where scores are negative too.
    """
    low, high = 1 / (1 + delta) - 1, delta
    tested = {
        label: draws.p(low * abs(reference), high * abs(reference))
        for label, (draws, reference) in differences.items()
        if len(draws.draws) and draws.rounds >= MIN_ROUNDS
    }
    levels = dict(zip(tested, holm(list(tested.values())), strict=True))
    words = dict.fromkeys(differences, UNCLEAR)
    for label, level in levels.items():
        draws, reference = differences[label]
        words[label] = verdict(draws.interval(1 - level).relative_to(abs(reference)), delta, better, QUALITY)
    return words
