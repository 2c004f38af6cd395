"""What one metric of many cells became, from an old set of records to a new one; Holm-adjusted over the cells."""

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from effbench.board.contrast import Contrast, exp, holm_contrasts, paired, unpaired
from effbench.board.measures import Measure
from effbench.board.rows import common_shapes, quality_difference
from effbench.board.settings import QualitySettings
from effbench.board.sides import Logs, Point
from effbench.board.stats import DRAWS, MIN_ROUNDS, VERDICT_LEVEL, Array, Interval, QualityDraws
from effbench.board.verdict import SAME, UNCLEAR, quality_verdicts, verdict

PAIRED = "paired rounds"
ROUNDS = "rounds"
SESSIONS = "sessions"
EXACT = "exact"
DOCUMENTS = "rounds and documents"
MOST_DRAWS = 200_000
"""Enough for the smallest level of 1,250 cells. Of more, scores that differ stay UNCLEAR; so memory stays bounded."""
Entry = dict[str, Any]


class Same(NamedTuple):
    """A cell that both sides have, in comparable forms."""

    old: Point
    new: Point
    entry: Entry
    """What names it."""


class _Tested(NamedTuple):
    """A cell whose change takes an interval."""

    entry: Entry
    contrast: Contrast


def contrast_of(old: Logs, new: Logs) -> tuple[Contrast, str]:
    """The change from one to the other, and what its interval is over.

    Rounds that both have of one session are paired, where there are enough. Otherwise the groups are independent: of the means
    of sessions where each side has at least MIN_ROUNDS of them, so that the interval covers what differs from session to
    session, or else of rounds.
    """
    common = sorted(old.keys() & new.keys())
    if len(common) >= MIN_ROUNDS:
        return paired(*(np.array([logs[trial] for trial in common]) for logs in (old, new))), PAIRED
    means = [_session_means(logs) for logs in (old, new)]
    if min(map(len, means)) >= MIN_ROUNDS:
        return unpaired(*means), SESSIONS
    return unpaired(*(np.array([*logs.values()]) for logs in (old, new))), ROUNDS


def measured(
    cells: Sequence[Same], measure: Measure, margin: float, references: Mapping[Point, Point | None] | None = None
) -> Iterator[Entry]:
    """A metric of all cells that have it on either side; with `references`, as ratios to each side's own baseline."""
    tested: list[_Tested] = []
    for cell in cells:
        points = (cell.old, cell.new)
        if not any(_known(point, measure.metric) for point in points):
            continue
        if references is not None and any(point.is_baseline for point in points):
            continue  # what the others are relative to
        bases = [references[point] if references is not None else None for point in points]
        logs = [point.logs(measure.metric, base) for point, base in zip(points, bases, strict=True)]
        entry = cell.entry | {"metric": measure.metric, "old_rounds": len(logs[0]), "new_rounds": len(logs[1])}
        if references is not None and None in bases:
            yield entry | {"reason": "no baseline beside it to be relative to"}
        elif not all(logs):
            yield from _without_ratio(cell, entry, measure, logs)
        elif measure.exact and all(len(_distinct(point, measure.metric)) == 1 for point in points):
            yield entry | _exact(cell, measure, margin)
        else:
            contrast, over = contrast_of(*logs)
            tested.append(_Tested(entry | _values(logs) | {"over": over}, contrast))
    adjusted = holm_contrasts([contrast for _, contrast in tested], math.log1p(margin))
    for (entry, _), (shown, decisive) in zip(tested, adjusted, strict=True):
        word = verdict(decisive, margin, measure.better, measure.words)
        yield entry | _ratio(shown) | {"verdict": word} | _too_few(shown.n)


def scored(cells: Sequence[Same], metric: str, margin: float) -> Iterator[Entry]:
    """A quality score of all cells that have it, relative to the old one, paired by round and document."""
    name = metric.removeprefix("quality.")
    differences: dict[int, tuple[QualityDraws, float]] = {}
    entries: list[Entry] = []
    having = [cell for cell in cells if any(metric in point.row.values for point in (cell.old, cell.new))]
    # Holm's smallest level is VERDICT_LEVEL over the number of cells, which takes so many draws to see.
    draws = min(MOST_DRAWS, max(DRAWS, math.ceil(4 * len(having) / VERDICT_LEVEL)))
    for cell in having:
        old, new = (_by_round(point, metric) for point in (cell.old, cell.new))
        common = sorted(old.keys() & new.keys())
        entry = cell.entry | {"metric": metric, "old_rounds": len(old), "new_rounds": len(new)}
        if reason := _no_score(cell, metric, common):
            entries.append(entry | {"reason": reason})
            continue
        reference, other = (fmean(scores[number] for number in common) for scores in (old, new))
        entry |= {"old": reference, "new": other, "over": DOCUMENTS}
        if all(old[number] == new[number] for number in common):
            # The same to the last digit, as of unchanged code: no test is needed, and none is spent.
            entry |= {"ratio": 1.0, "verdict": SAME if len(common) >= MIN_ROUNDS else UNCLEAR} | _too_few(len(common))
        elif reference <= 0:
            entry |= {"reason": "an old score of zero or less: no ratio"}
        else:
            shapes = common_shapes([cell.new.row, cell.old.row], metric)
            found = quality_difference(cell.new.row, cell.old.row, name, shapes, draws)
            if found is not None:
                differences[len(entries)] = (found, reference)
        entries.append(entry)
    words = quality_verdicts(differences, margin, QualitySettings(metric=name).direction)
    for index, (found, reference) in differences.items():
        entries[index] |= _ratio(found.interval().relative_to(reference)) | {"verdict": words[index]} | _too_few(found.rounds)
    yield from entries


def _ratio(interval: Interval) -> Entry:
    return {"ratio": interval.estimate, "low": interval.low, "high": interval.high}


def _too_few(rounds: int) -> Entry:
    return {} if rounds >= MIN_ROUNDS else {"reason": f"fewer than {MIN_ROUNDS} rounds: no verdict"}


def _session_means(logs: Logs) -> Array:
    sessions: dict[str, list[float]] = {}
    for (session, _), value in logs.items():
        sessions.setdefault(session, []).append(value)
    return np.array([fmean(values) for values in sessions.values()])


def _known(point: Point, metric: str) -> bool:
    return metric in point.row.values or metric in point.row.disturbed


def _values(logs: Sequence[Logs]) -> Entry:
    """Geometric means over rounds."""
    return {side: exp(fmean(values.values())) for side, values in zip(("old", "new"), logs, strict=True)}


def _distinct(point: Point, metric: str) -> set[float]:
    return {*point.row.values.get(metric, {}).values()}


def _exact(cell: Same, measure: Measure, margin: float) -> Entry:
    """Of a positive count that is the same in every round."""
    [old], [new] = (_distinct(point, measure.metric) for point in (cell.old, cell.new))
    ratio = Interval(new / old, None, None, 1)
    word = verdict(ratio, margin, measure.better, measure.words, exact=True)
    return {"old": old, "new": new, "ratio": ratio.estimate, "verdict": word, "over": EXACT}


def _without_ratio(cell: Same, entry: Entry, measure: Measure, logs: Sequence[Logs]) -> Iterator[Entry]:
    """Nothing where both are zero; otherwise what is missing, and where."""
    values = [_distinct(point, measure.metric) for point in (cell.old, cell.new)]
    if values == [{0.0}, {0.0}]:
        return
    for side, point, own, found in zip(("OLD", "NEW"), (cell.old, cell.new), logs, values, strict=True):
        if own:
            continue
        if not found and measure.metric in point.row.disturbed:
            yield entry | {"verdict": UNCLEAR, "reason": f"all its timings in {side} are of disturbed trials"}
        elif not found:
            yield entry | {"reason": f"not measured in {side}"}
        else:
            yield entry | {"reason": f"no positive value in {side}, or none beside its baseline's: no ratio"}
        return


def _by_round(point: Point, metric: str) -> dict[int, float]:
    return {trial.round: value for trial, value in point.row.values.get(metric, {}).items() if math.isfinite(value)}


def _no_score(cell: Same, metric: str, common: Sequence[int]) -> str:
    missing = [side for side, point in (("OLD", cell.old), ("NEW", cell.new)) if metric not in point.row.values]
    if missing:
        return f"not measured in {missing[0]}"
    if cell.old.row.data != cell.new.row.data:
        return "scores are of other text"
    return "" if common else "no round in common"
