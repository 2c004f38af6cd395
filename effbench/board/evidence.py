"""What the trials of a board say on the quantity that a claim is about: an estimate with its interval, and where it is from."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from effbench.board.chance import AT_CHANCE
from effbench.board.lengths import COSTS, Group, lengths_of
from effbench.board.measures import MEASURES
from effbench.board.rows import Row, Shape, log_ratios, per_sample, quality_difference
from effbench.board.scaling import fit
from effbench.board.stats import Interval, QualityDraws, mean_interval, quality_draws, ratio_interval
from effbench.plan.claim import BASELINE, Claim

if TYPE_CHECKING:
    from effbench.board.leaderboard import Leaderboard

COUNTS = frozenset(
    {measure.metric for measure in MEASURES if measure.exact}
    | {"parameters.total", "weights.density", "pipeline.bubble_formula", "train.communication_bytes"}
    | {"train.optimizer_state_bytes", "train.model_bytes", "infer.model_bytes"}
    | {"train.step_flops", "infer.prefill_flops", "infer.decode_token_flops"}
)
"""Metrics that are counted and not measured: where every round gives the same, one round is enough."""
_QUALITY = "quality."


class NotMeasuredError(Exception):
    """Why there is nothing to judge."""


@dataclass(frozen=True)
class Evidence:
    """What was found of one quantity."""

    interval: Interval
    shapes: frozenset[Shape]
    """Of the cells that it rests on."""
    row: Row
    exact: bool = False
    """A count: there is no interval, and one round is enough."""


def row_of(board: "Leaderboard", stack: str, claim: Claim, beside: Mapping[str, Any] | None = None) -> Row:
    """The one row of a stack that a claim is about; `beside` are the options of the row that it is compared with."""
    wanted = {**(beside or {}), **claim.options}
    rows = _rows(board, stack, wanted)
    if len(rows) > 1:
        raise NotMeasuredError(f"{len(rows)} rows of `{stack}` on this board, such as `{rows[0].label}`: `where` must name one")
    return rows[0]


def _rows(board: "Leaderboard", stack: str, options: Mapping[str, Any]) -> list[Row]:
    named = [row for row in board.table.rows if row.stack == stack]
    rows = [row for row in named if all(options.get(key, value) == value for key, value in row.options.items())]
    if not rows:
        raise NotMeasuredError(f"no record of `{stack}`" + (f" at {_words(options)}" if named else ""))
    return rows


def reference_of(board: "Leaderboard", row: Row, name: str, claim: Claim) -> Row:
    """What a row is compared with."""
    if name != BASELINE:
        return row_of(board, name, claim, row.options)
    if (base := board.table.base.get(row.label)) is None:
        raise NotMeasuredError("no record of the baseline")
    return base


def steps_along(board: "Leaderboard", claim: Claim, axis: str) -> list[Row]:
    """A row for each value of an axis, in its order; those of a shape's axis have it taken out of their shapes."""
    if "." in axis:
        rows = [row for row in _rows(board, claim.stack, claim.options) if axis in row.options]
        values = [row.options[axis] for row in rows]
        if len({*values}) < len(rows):
            raise NotMeasuredError(f"the board has several rows of it at one value of {axis}")
        found = dict(zip(values, rows, strict=True))
    else:
        row = row_of(board, claim.stack, claim)
        sizes = {getattr(shape, axis) for shape in row.shapes(claim.metric) if _within(shape, claim)}
        found = {size: _at(row, axis, size) for size in sizes}
    if len(found) < 2:
        raise NotMeasuredError(f"{claim.metric} was measured at {len(found)} values of {axis}, which takes two")
    return [found[value] for value in sorted(found)]


def _at(row: Row, axis: str, size: int) -> Row:
    """The row's trials of one size, their shapes without the axis (0 in its place), so that two sizes can be paired."""

    def without(shape: Shape) -> Shape:
        return Shape(**(shape._asdict() | {axis: 0}))

    def there(shape: Shape) -> bool:
        return bool(getattr(shape, axis) == size)

    values = {
        metric: {trial._replace(shape=without(trial.shape)): value for trial, value in found.items() if there(trial.shape)}
        for metric, found in row.values.items()
    }
    samples = {(number, without(shape)): file for (number, shape), file in row.samples.items() if there(shape)}
    return replace(row, label=f"{row.label} {axis}={size}", values=values, samples=samples)


def ratio(board: "Leaderboard", claim: Claim, row: Row, other: Row, level: float) -> Evidence:
    """Row / other on the cells that both completed, paired within rounds of a session."""
    shapes = _shapes(row, claim) & _shapes(other, claim)
    if not shapes:
        raise NotMeasuredError(f"no cell that both `{row.label}` and `{other.label}` completed")
    if claim.metric.startswith(_QUALITY):
        draws, reference = _quality_difference(board, claim, row, other, shapes)
        return Evidence(draws.interval(level).relative_to(reference), frozenset(shapes), row)
    mine, theirs = row.mean(claim.metric, shapes), other.mean(claim.metric, shapes)
    if mine is not None and theirs is not None and all(_counted(one, claim.metric) for one in (row, other)):
        return Evidence(Interval(mine / theirs, None, None, _rounds(row, claim.metric)), frozenset(shapes), row, exact=True)
    logs = log_ratios(row, other, claim.metric, shapes)
    return Evidence(ratio_interval(logs, level), frozenset(shapes), row)


def _quality_difference(
    board: "Leaderboard", claim: Claim, row: Row, other: Row, shapes: set[Shape]
) -> tuple[QualityDraws, float]:
    """Draws of row - other, and the other's own score, which makes a ratio of them."""
    name = claim.metric.removeprefix(_QUALITY)
    if leaking := next((one for one in (row, other) if one.leaks), None):
        raise NotMeasuredError(f"`{leaking.label}` sees later tokens, so its quality says nothing")
    if row.data != other.data:
        raise NotMeasuredError("quality was measured on different text")
    if name == board.quality_metric and board.table.not_above_chance(other) == AT_CHANCE:
        raise NotMeasuredError(f"`{other.label}` is at chance: a ratio to it says nothing")
    reference = fmean(value for trial, value in other.values[claim.metric].items() if trial.shape in shapes)
    found = quality_difference(row, other, name, shapes)
    if found is None:
        raise NotMeasuredError(f"`{row.label}` and `{other.label}` share no round with a score")
    if reference <= 0:
        raise NotMeasuredError(f"the score of `{other.label}` is zero or less, to which there is no ratio")
    return found, reference


def value(claim: Claim, row: Row, level: float) -> Evidence:
    """The quantity itself: the mean over cells of each round, then over rounds."""
    shapes = _shapes(row, claim, zeros=True)
    if claim.metric.startswith(_QUALITY):
        return Evidence(_quality_value(claim.metric, row, shapes).interval(level), frozenset(shapes), row)
    by_round = _by_round(row, claim.metric, shapes)
    if _counted(row, claim.metric) and by_round:
        estimate = row.mean(claim.metric, shapes) or float(np.mean(by_round))
        return Evidence(Interval(estimate, None, None, len(by_round)), frozenset(shapes), row, exact=True)
    rounds = np.array(by_round)
    positive = bool((rounds > 0).all())  # of zeros there is no logarithm
    interval = ratio_interval(np.log(rounds), level) if positive else mean_interval(rounds, level)
    return Evidence(interval, frozenset(shapes), row)


def _quality_value(metric: str, row: Row, shapes: set[Shape]) -> QualityDraws:
    name = metric.removeprefix(_QUALITY)
    if row.leaks:
        raise NotMeasuredError(f"`{row.label}` sees later tokens, so its quality says nothing")
    numbers = sorted({trial.round for trial in row.values[metric] if trial.shape in shapes})
    found = [per_sample(row, name, number, shapes) for number in numbers]
    scores = [scores for scores in found if scores is not None]
    if len(scores) < len(numbers) or any(one[0] != scores[0][0] for one in scores):  # missing, or of other documents
        return QualityDraws(fmean(_by_round(row, metric, shapes) or [math.nan]), np.empty(0), len(numbers))
    values = np.stack([one[1] for one in scores])
    return quality_draws(np.zeros_like(values), values, scores[0][2], row.trained)


def exponent(board: "Leaderboard", claim: Claim, row: Row, level: float) -> Evidence:
    """How the cost grows with the length, as the board fits it."""
    if claim.metric not in COSTS:
        raise NotMeasuredError(f"exponents are fitted of {', '.join(COSTS)}, not of {claim.metric}")
    shapes = _shapes(row, claim)
    groups = sorted({Group.of(shape) for shape in shapes})
    if len(groups) > 1:
        raise NotMeasuredError("several batch sizes or dtypes: `where` must name one")
    found = fit(row, claim.metric, groups[0], board.settings.fit_from or 0, level)
    if not found.lengths:
        lengths = ", ".join(map(str, lengths_of(row, claim.metric, groups[0])))
        raise NotMeasuredError(f"a fit takes three lengths, measured: {lengths}")
    return Evidence(found.exponent, frozenset(groups[0].at(length) for length in found.lengths), row)


def _by_round(row: Row, metric: str, shapes: set[Shape]) -> list[float]:
    """Means over cells of the rounds that have them all."""
    rounds: dict[int, dict[Shape, list[float]]] = {}
    for trial, value in row.values.get(metric, {}).items():
        if trial.shape in shapes:
            rounds.setdefault(trial.round, {}).setdefault(trial.shape, []).append(value)
    return [fmean(map(fmean, found.values())) for _, found in sorted(rounds.items()) if found.keys() == shapes]


def _counted(row: Row, metric: str) -> bool:
    return metric in COUNTS and row.constant(metric)


def _rounds(row: Row, metric: str) -> int:
    return len({trial.round for trial in row.values[metric]})


def _within(shape: Shape, claim: Claim) -> bool:
    wanted = {key: claim.where[key] for key in Shape._fields if key in claim.where}
    # 0 stands for an axis that was taken out.
    return all(getattr(shape, key) in (value, 0) for key, value in wanted.items())


def _shapes(row: Row, claim: Claim, *, zeros: bool = False) -> set[Shape]:
    """Where the metric was measured, of what the claim is about; NotMeasuredError says why there is nothing."""
    measured = {trial.shape for trial in row.values.get(claim.metric, {})}
    usable = measured if zeros else row.shapes(claim.metric)
    if found := {shape for shape in usable if _within(shape, claim)}:
        return found
    raise NotMeasuredError(_why_missing(row, claim, {shape for shape in measured if _within(shape, claim)}))


def _why_missing(row: Row, claim: Claim, zero: set[Shape]) -> str:
    phase = claim.metric.partition(".")[0]
    lost = [found for shape, found in row.lost().items() if _within(shape, claim)]
    skipped = [why for shape, why in row.skipped_phases.get(phase, {}).items() if _within(shape, claim)]
    if zero:
        return f"{claim.metric} of `{row.label}` is 0, of which there is no ratio"
    if lost:
        status, error = lost[0]
        reason = error.strip().rpartition("\n")[2][:120]
        return f"`{row.label}`: {status}" + (f" ({reason})" if reason else "")
    if skipped:
        return f"`{row.label}`: {phase} skipped" + (f" ({skipped[0]})" if skipped[0] else "")
    if claim.metric in row.disturbed:
        return f"every trial of `{row.label}` was disturbed, so its timings are left out"
    if not any(_within(shape, claim) for shape in row.statuses):
        return f"no record of `{row.label}` at {_words(claim.where)}"
    return f"no {claim.metric} of `{row.label}` in these records"


def _words(where: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} = {value}" for key, value in where.items())


def cells_of(board: "Leaderboard", found: Sequence[Evidence]) -> tuple[str, ...]:
    """Ids of the claim's own cells that the evidence rests on."""
    columns = ["cell_id", "seq_len", "paired_batch", "dtype", "place"]
    cells = board.trials[columns].drop_duplicates().itertuples(index=False)
    shaped = {cell: Shape(*shape) for cell, *shape in cells}
    own = {cell for one in found for cell in one.row.cells if any(_alike(shaped[cell], shape) for shape in one.shapes)}
    return tuple(sorted(own))


def _alike(shape: Shape, other: Shape) -> bool:
    return all(theirs in (mine, 0) for mine, theirs in zip(shape, other, strict=True))
