"""Stacks against their baseline: one table per machine, suite, model and workload, which never orders what the data cannot."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from effbench.board.aggregate import aggregate_notes, aggregated_measures, without_scores
from effbench.board.chance import chance_notes
from effbench.board.frame import load
from effbench.board.measures import better_of, measures_of
from effbench.board.parts import Part, parts
from effbench.board.rows import Row, common_shapes, log_ratios, rows_of
from effbench.board.scaling import scaling_of
from effbench.board.settings import QualitySettings, Settings, settings_of
from effbench.board.stats import MIN_ROUNDS, holm_intervals
from effbench.board.table import Table
from effbench.board.verdict import clearly_better
from effbench.board.view import EVERYTHING, View, axes_of, check_columns, present
from effbench.board.world_sizes import world_sizes_of

if TYPE_CHECKING:
    import pandas as pd

LEAKS = "LEAKS THE FUTURE"
BELOW_FLOOR = "below quality floor"
NOTHING_TO_RANK_BY = "nothing to rank by"


@dataclass(frozen=True)
class Leaderboard:
    """One table, with what a reader must know of it."""

    title: str
    machine: str
    suite: str
    model: str
    workload: str
    baseline: str | None
    rounds: tuple[int, int]
    """Fewest and most rounds behind a row."""
    delta: float
    ranked_by: str | None
    quality_metric: str
    world_size: int
    notes: list[str]
    rows: "pd.DataFrame"
    """One row per stack and value of its option axes; columns as `table.columns()` says."""
    cells: Mapping[str, tuple[str, ...]]
    """Ids of the cells that a row stands for, by its name in the column `stack`."""
    baseline_cells: tuple[str, ...]
    """Ids of the cells that the others are compared with."""
    scaling: "pd.DataFrame | None"
    """How each stack's costs grow with the length; None below three lengths. Columns as `scaling.SCALING_COLUMNS`."""
    by_length: "pd.DataFrame | None"
    """The ratio to the baseline at each length; None below three lengths. Columns as `scaling.LENGTH_COLUMNS`."""
    world_sizes: "pd.DataFrame | None"
    """All world sizes side by side, on the board of the largest; None of a single rank. Columns as `world_sizes.columns`."""
    extra_columns: Mapping[str, str]
    """The metrics that the suite asks to show, by their columns' key."""
    settings: Settings
    """What of the suite decided how the numbers were compared."""
    slice: Mapping[str, str]
    """Values of the axes that it is one slice by; empty of a whole board."""
    unranked: Mapping[str, str]
    """Why a row has no rank, by its name in the column `stack`."""
    table: Table
    """The rows with the values of every trial, and what each is compared with."""
    trials: "pd.DataFrame"
    """Its part of the tidy frame, a row per trial and metric."""


def build(
    source: "str | Path | pd.DataFrame", settings: Mapping[str, Any] | None = None, view: View = EVERYTHING
) -> list[Leaderboard]:
    """Leaderboards of a results folder, or of a frame that `load` made. `settings` stands for each suite's own."""
    frame = load(source) if isinstance(source, str | Path) else source
    if frame.empty:
        return []
    newest, older = current(frame)
    boards = [_board(part, settings) for part in parts(newest, older, settings, view)]
    if view == EVERYTHING:
        return boards
    axes = axes_of(frame)
    check_columns(view, axes, [board.rows for board in boards])
    return [_presented(board, view, axes) for board in boards]


def _presented(board: Leaderboard, view: View, axes: Sequence[str]) -> Leaderboard:
    """The rows that the view shows, along lengths and world sizes too."""
    rows, notes = present(board.rows, view, axes)
    if where := view.trials(axes):
        notes.insert(0, f"of the trials with {' and '.join(part.text for part in where)}, and the baseline's paired with them")
    along = {name: getattr(board, name) for name in ("scaling", "by_length", "world_sizes")}
    kept = {
        name: frame[frame["stack"].isin(rows["stack"])].reset_index(drop=True)
        for name, frame in along.items()
        if frame is not None and len(rows) < len(board.rows)
    }
    return replace(board, rows=rows, notes=[*notes, *board.notes], **kept)


def current(frame: "pd.DataFrame") -> "tuple[pd.DataFrame, pd.DataFrame]":
    """The rows of the newest code per cell, and the trials of older code.

    A run writes rounds from 1 upwards over what is there, so the fingerprint at a cell's lowest round is its newest. Copies
    and git checkouts change a file's time, but not this.
    """
    import pandas as pd

    cell = ["machine", "cell_id"]
    trial = [*cell, "session", "round", "fingerprint"]
    frame = _where(frame, ~frame.duplicated([*trial, "metric"])).reset_index(drop=True)
    first = ~frame.duplicated(trial)
    frame = frame.assign(first=first)
    newest = frame[first].sort_values(["round", "fingerprint"]).drop_duplicates(cell).index
    numbers = frame.groupby(cell, observed=True).ngroup().to_numpy()
    fingerprints, _ = pd.factorize(frame["fingerprint"])
    of_cell = np.empty(len(newest), dtype=fingerprints.dtype)
    of_cell[numbers[newest]] = fingerprints[newest]
    is_current = fingerprints == of_cell[numbers]
    return _where(frame, is_current), frame[~is_current & first]


def _where(frame: "pd.DataFrame", mask: Any) -> "pd.DataFrame":
    """Those rows; not copied where they are all of them."""
    return frame if mask.all() else frame[mask]


def _board(part: Part, given: Mapping[str, Any] | None) -> Leaderboard:
    trial = part.trials.iloc[0]
    settings, problems = settings_of(part.trials, given)
    frame = without_scores(part.trials) if part.places else part.trials
    rows = rows_of(frame)
    baseline = settings.baseline or next((row.stack for row in rows if row.techniques == "untouched"), None)
    measures = aggregated_measures(settings.columns) if part.places else measures_of(settings.columns)
    table = Table(rows, baseline, settings.delta, settings.quality.metric, settings.quality.direction, measures)
    by = settings.ranking.by or _first_measured(rows)
    unranked = _unranked(table, settings.quality, by)
    if part.places:
        unranked = _unranked_somewhere(part, settings, by, rows) | unranked
    ranks = _ranks(table, by, settings, unranked)
    ranked = table.frame(ranks, unranked)
    by_label = {row.label: row for row in rows}
    in_order = [by_label[label] for label in ranked["stack"]]
    # Costs of different models are not points of one curve, and their speeds on several ranks not of one.
    scaling = None if part.places else scaling_of(in_order, table.base, settings.fit_from)
    across = None if part.places or part.together is None else world_sizes_of(part.together, settings.delta)
    counts = [len(rounds) for row in rows if (rounds := row.rounds())] or [0]
    model, workload = (", ".join(sorted(map(str, frame[name].unique()))) for name in ("model", "workload"))
    what = f"aggregate of {len(part.places)} boards" if part.places else f"{model} on {workload}"
    return Leaderboard(
        title=", ".join([f"{trial['suite']}: {what}", *part.details]),
        machine=str(trial["machine"]),
        suite=str(trial["suite"]),
        model=model,
        workload=workload,
        baseline=baseline,
        rounds=(min(counts), max(counts)),
        delta=settings.delta,
        ranked_by=by,
        quality_metric=settings.quality.metric,
        world_size=int(trial["world_size"]),
        notes=list(
            dict.fromkeys(
                [
                    *problems,
                    *aggregate_notes(part.places, rows, by),
                    *_round_notes(counts),
                    *table.notes,
                    *chance_notes(rows, settings.quality.metric, unranked, baseline),
                    *_rank_notes(rows, trial),
                    *(scaling.notes if scaling else ()),
                    *(across.notes if across else ()),
                    *_losses(rows),
                    *part.notes,
                ]
            )
        ),
        rows=ranked,
        cells={row.label: tuple(sorted(row.cells)) for row in rows},
        baseline_cells=tuple(sorted(set[str]().union(*(row.cells for row in rows if row.stack == baseline)))),
        scaling=scaling.scaling if scaling else None,
        by_length=scaling.by_length if scaling else None,
        world_sizes=across.rows if across else None,
        settings=settings,
        slice=part.slice,
        unranked=unranked,
        table=table,
        trials=frame,
        extra_columns={measure.key: measure.metric for measure in measures if measure.metric in settings.columns},
    )


def _unranked_somewhere(part: Part, settings: Settings, by: str | None, rows: Sequence[Row]) -> dict[str, str]:
    """Why a row of an aggregate must not be ranked: what its score says on one of the boards that it is of."""
    found: dict[str, str] = {}
    quality = settings.quality
    for place, own in part.trials.groupby("place", observed=True):
        ours = rows_of(own)
        baseline = settings.baseline or next((row.stack for row in ours if row.techniques == "untouched"), None)
        reasons = _unranked(Table(ours, baseline, settings.delta, quality.metric, quality.direction), quality, by)
        for row in ours:
            if (reason := reasons.get(row.label)) and reason not in (f"no {by}", NOTHING_TO_RANK_BY):
                found |= {other.label: f"{reason} ({place})" for other in rows if other.cells & row.cells}
    return found


def _first_measured(rows: Sequence[Row]) -> str | None:
    known = ("train.tokens_per_s", "infer.prefill_tokens_per_s", "infer.decode_tokens_per_s")
    return next((metric for metric in known if any(row.shapes(metric) for row in rows)), None)


def _unranked(table: Table, quality: QualitySettings, by: str | None) -> dict[str, str]:
    """Why a row has no rank, by its label."""
    reasons = {}
    reference = {row.label: table.quality_ratio(row) for row in table.rows}
    measured = any(ratio is not None for ratio in reference.values())
    for row in table.rows:
        ratio = reference[row.label]
        if row.reference or not row.values:
            reasons[row.label] = ""  # its label, or its status, says it
        elif row.leaks:
            reasons[row.label] = LEAKS
        elif chance := table.not_above_chance(row):
            reasons[row.label] = chance
        elif by is None or not row.shapes(by):
            reasons[row.label] = f"no {by}" if by else NOTHING_TO_RANK_BY
        elif quality.floor is not None and ratio is None and measured:
            reasons[row.label] = "no quality measured"
        elif quality.floor is not None and ratio is not None:
            worse = ratio > quality.floor if quality.direction == "lower" else ratio < 1 / quality.floor
            if worse:
                reasons[row.label] = BELOW_FLOOR
    return reasons


def _ranks(table: Table, by: str | None, settings: Settings, unranked: Mapping[str, str]) -> dict[str, tuple[int, int]]:
    """Rank ranges: 1 + rows clearly better … N - rows clearly worse, all pairs Holm-adjusted together."""
    rows = [row for row in table.rows if row.label not in unranked]
    if by is None:
        return {}
    shapes = common_shapes(table.rows, by)
    if not shapes:
        return {}
    better = settings.ranking.better or better_of(by)
    pairs = [(i, j) for i in range(len(rows)) for j in range(i)]
    logs = [log_ratios(rows[i], rows[j], by, shapes) for i, j in pairs]
    ahead = Counter[int]()
    behind = Counter[int]()
    for (i, j), (_, adjusted) in zip(pairs, holm_intervals(logs, table.bound), strict=True):
        order = clearly_better(adjusted, settings.delta, better)
        if order:
            winner, loser = (i, j) if order > 0 else (j, i)
            behind[winner] += 1
            ahead[loser] += 1
    return {row.label: (1 + ahead[i], len(rows) - behind[i]) for i, row in enumerate(rows)}


def _round_notes(counts: Sequence[int]) -> Iterator[str]:
    if (most := max(counts)) < MIN_ROUNDS:
        count = f"{most} round{'' if most == 1 else 's'}"
        yield f"{count}: every verdict on a measured quantity is UNCLEAR, which takes {MIN_ROUNDS}; more `--rounds` give them"


def _rank_notes(rows: Sequence[Row], trial: "pd.Series[Any]") -> Iterator[str]:
    if any(row.reference for row in rows) and (ranks := int(trial["world_size"])) > 1:
        yield f"speed is that of {ranks} ranks together over the baseline's single one; per rank divide it by {ranks}"


def _losses(rows: Sequence[Row]) -> Iterator[str]:
    """What did not end well, and what was left out."""
    for row in rows:
        whole = row.lost()
        lost: dict[tuple[str, str], list[str]] = {}
        for status, error in whole.values():
            lost.setdefault((status, "cells"), []).append(error)
        for status, error in (t for shape, trials in row.statuses.items() if shape not in whole for t in trials):
            if status != "ok":
                lost.setdefault((status, "trials"), []).append(error)
        totals = {"cells": len(row.statuses), "trials": sum(map(len, row.statuses.values()))}
        for (status, kind), errors in lost.items():
            reason = errors[0].strip().rpartition("\n")[2][:120]
            yield f"{len(errors)} of {totals[kind]} {kind} of `{row.label}`: {status}" + (f" ({reason})" if reason else "")
        if row.leaks:
            yield f"`{row.label}` {LEAKS}, so its quality means nothing and it is not ranked: {row.leaks}"
        if row.dirty:
            [(reason, _)] = Counter(row.dirty.values()).most_common(1)
            yield f"{len(row.dirty)} of {totals['trials']} trials of `{row.label}`: timings left out, disturbed ({reason})"
        for phase, reasons in row.skipped_phases.items():
            some = f" at {len(reasons)} of {totals['cells']} cells" if len(reasons) < totals["cells"] else ""
            reason = next(iter(reasons.values()))
            yield f"`{row.label}`: {phase} skipped{some}" + (f": {reason}" if reason else "")
