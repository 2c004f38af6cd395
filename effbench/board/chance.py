"""Whether a row's score is clearly better than that of the best constant prediction, which takes no model at all."""

from collections.abc import Sequence

import numpy as np

from effbench.board.rows import Row, Shape, per_sample
from effbench.board.stats import VERDICT_LEVEL, quality_draws
from effbench.board.verdict import Better

AT_CHANCE = "at chance"
NO_SCORE = "no score to tell it from chance"
NO_SAMPLES = "no per-sample scores to tell it from chance"


def chance(row: Row, name: str) -> float | None:
    """What the best constant prediction scores; None where the workload does not know."""
    return row.any_value(f"quality_chance.{name}")


def not_above_chance(row: Row, name: str, shapes: set[Shape], better: Better) -> str | None:
    """Why a row must not be ranked: its score is not clearly better than a constant's, paired by sample.

    Only samples are resampled: the question is what these trained models know, not what others would have learnt. The level is
    that of every verdict, for a board is looked at again and again.
    """
    if chance(row, name) is None:
        return None
    numbers = sorted({trial.round for trial in row.values.get(f"quality.{name}", {}) if trial.shape in shapes})
    pairs = [[per_sample(row, name, number, shapes, kind) for number in numbers] for kind in ("chance", "per_sample")]
    found = [scores for of_kind in pairs for scores in of_kind if scores is not None]
    if not found or len(found) < 2 * len(numbers) or any(scores[0] != found[0][0] for scores in found):
        return NO_SAMPLES
    values = np.stack([scores[1] for scores in found])
    constant, own = values[: len(numbers)], values[len(numbers) :]
    interval = quality_draws(constant, own, found[0][2], trained=False).interval(1 - VERDICT_LEVEL)
    clear = (interval.low or 0.0) > 0 if better == "higher" else (interval.high or 0.0) < 0
    return None if clear else AT_CHANCE


def chance_notes(rows: Sequence[Row], name: str, unranked: dict[str, str], baseline: str | None) -> list[str]:
    """What chance is on this board, and which rows are no better."""
    known = [value for row in rows if (value := chance(row, name)) is not None]
    if not known:
        return []
    marked = [row for row in rows if unranked.get(row.label) == AT_CHANCE]
    names = ", ".join(f"`{row.label}`" for row in marked) or "none"
    notes = [f"chance is {name} {known[0]:.3f}, the best constant answer's; not clearly better, so not ranked: {names}"]
    if any(row.stack == baseline for row in marked):
        notes.append("the baseline itself is at chance: differences in quality say nothing here")
    return notes
