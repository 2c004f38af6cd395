"""What a front is over: metrics and scores of a board by name, with their direction, and where each row stands on them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

import numpy as np

from effbench.board.leaderboard import Leaderboard
from effbench.board.measures import MEASURES, Measure, better_of
from effbench.board.noise import SharedNoise
from effbench.board.rows import Row, common_shapes, log_ratios_by_round, quality_pairs
from effbench.board.stats import DRAWS, MIN_ROUNDS, Array
from effbench.board.table import Table
from effbench.board.verdict import Better
from effbench.plugin.errors import InputError, unknown

_SCORE = "quality."
_DIRECTIONS: tuple[Better, ...] = ("lower", "higher")


class Place(NamedTuple):
    """Where a row stands on one objective, larger is better: a log ratio to the reference, or a difference of scores."""

    estimate: float
    draws: Array | None
    """Of it; None where the rounds are too few, or a score has no per-sample scores."""


@dataclass(frozen=True)
class Objective:
    """One metric of a front."""

    name: str
    """As it was asked for."""
    metric: str
    better: Better
    table: Table
    """Whose quality is the score, where it is one."""
    count: bool = False
    """The same in every round, so that one is enough."""

    @property
    def is_score(self) -> bool:
        """Whether it lives on the scale of a score and not of ratios."""
        return self.metric.startswith(_SCORE)

    def value(self, row: Row) -> float | None:
        """The board's mean; None where it was not measured everywhere, or is zero somewhere and has no ratio."""
        if self.is_score:
            return self.table.quality_of(row)
        shapes = common_shapes(self.table.rows, self.metric)
        return None if row.mean_with_zeros(self.metric) is not None else row.mean(self.metric, shapes)

    def place(self, row: Row, reference: Row, noise: SharedNoise) -> Place:
        """Where a row stands that has a value, as the reference has."""
        found = self._score(row, reference, noise) if self.is_score else self._ratio(row, reference, noise)
        sign = 1 if self.better == "higher" else -1
        return Place(sign * found.estimate, None if found.draws is None else sign * found.draws)

    def _ratio(self, row: Row, reference: Row, noise: SharedNoise) -> Place:
        whole = math.log((self.value(row) or math.nan) / (self.value(reference) or math.nan))
        if self.count and row.constant(self.metric) and reference.constant(self.metric):
            return Place(whole, np.full(DRAWS, whole))
        logs = log_ratios_by_round(row, reference, self.metric, common_shapes(self.table.rows, self.metric))
        estimate = fmean(logs.values()) if logs else whole
        return Place(estimate, estimate + noise.of_rounds(logs) if len(logs) >= MIN_ROUNDS else None)

    def _score(self, row: Row, reference: Row, noise: SharedNoise) -> Place:
        pairs = quality_pairs(row, reference, self.metric.removeprefix(_SCORE), self.table.quality_shapes)
        values = pairs.by_round.values()
        estimate = fmean(values) if values else (self.value(row) or 0.0) - (self.value(reference) or 0.0)
        if len(values) < MIN_ROUNDS:
            return Place(estimate, None)
        if row is reference:
            return Place(0.0, np.zeros(DRAWS))
        if pairs.own is None or pairs.other is None or pairs.weights is None or len(pairs.weights) < 2:
            return Place(estimate, None)
        differences, share = pairs.own - pairs.other, pairs.weights / pairs.weights.sum()
        draws = noise.of_documents(differences.mean(axis=0), pairs.weights)
        if row.trained or reference.trained:
            draws = draws + noise.of_rounds(dict(zip(pairs.by_round, differences @ share, strict=True)))
        return Place(estimate, estimate + draws)


def objective(board: Leaderboard, text: str) -> Objective:
    """What a text means on a board: a metric, the key of its columns, or a score, with `:lower` or `:higher` behind it.

    InputError for what no row of the board has.
    """
    name, _, given = text.partition(":")
    if given not in ("", *_DIRECTIONS):
        raise InputError(f"metric {text!r}: behind the colon stands lower or higher")
    known = {metric for row in board.table.rows for metric in row.values}
    measures: Mapping[str, Measure] = {m.key: m for m in MEASURES} | {m.metric: m for m in MEASURES}
    measure = measures.get(name)
    if name == "quality":
        metric = f"{_SCORE}{board.quality_metric}"
    elif measure:
        metric = measure.metric
    else:
        metric = name if name in known else f"{_SCORE}{name}"
    if metric not in known:
        keys = {measure.key for measure in MEASURES if measure.metric in known}
        raise unknown("metric", name, keys | {metric.removeprefix(_SCORE) for metric in known})
    better = next((d for d in _DIRECTIONS if d == given), None) or _direction(board, metric, measure)
    return Objective(name, metric, better, _table(board, metric), measure is not None and measure.exact)


def _direction(board: Leaderboard, metric: str, measure: Measure | None) -> Better:
    """As the suite says, or the board, or else the name does."""
    if metric == board.settings.ranking.by and board.settings.ranking.better:
        return board.settings.ranking.better
    if metric == f"{_SCORE}{board.quality_metric}":
        return board.settings.quality.direction
    return measure.better if measure else better_of(metric)


def _table(board: Leaderboard, metric: str) -> Table:
    """The board's own; one of the same rows for another score, which has cells and texts of its own."""
    score = metric.removeprefix(_SCORE) if metric.startswith(_SCORE) else board.quality_metric
    if score == board.quality_metric:
        return board.table
    return Table(board.table.rows, board.baseline, board.delta, score, "lower")
