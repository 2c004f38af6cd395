"""Stacks against their baseline: one table per machine, suite, model and workload, which never orders what the data cannot."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from effbench.board.chance import chance_notes
from effbench.board.frame import load
from effbench.board.measures import measures_of
from effbench.board.rows import Row, common_shapes, log_ratios, rows_of
from effbench.board.scaling import scaling_of
from effbench.board.settings import QualitySettings, Settings, settings_of
from effbench.board.stats import MIN_ROUNDS, holm_intervals
from effbench.board.table import Table
from effbench.board.verdict import clearly_better
from effbench.board.world_sizes import WorldSizes, world_sizes_of

if TYPE_CHECKING:
    import pandas as pd

_BOARD = ["machine", "suite", "model", "workload"]
LEAKS = "LEAKS THE FUTURE"
_APART = ["methodology", "weights", "device", "settings", "world_size"]
"""What else numbers must share to stand in one table; named in the title where a board splits by it. World sizes stand in
tables of their own, one after another."""


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
    table: Table
    """The rows with the values of every trial, and what each is compared with."""
    trials: "pd.DataFrame"
    """Its part of the tidy frame, a row per trial and metric."""


def build(source: "str | Path | pd.DataFrame", settings: Mapping[str, Any] | None = None) -> list[Leaderboard]:
    """Leaderboards of a results folder, or of a frame that `load` made. `settings` stands for each suite's own."""
    frame = load(source) if isinstance(source, str | Path) else source
    if frame.empty:
        return []
    current, older = _current(frame)
    older_counts = {ids: len(trials) for ids, trials in older.groupby(_BOARD, observed=True).groups.items()}
    boards = []
    for ids, group in current.groupby(_BOARD, sort=True, observed=True):
        older_trials = older_counts.get(ids, 0)
        notes = [f"{older_trials} trials of older code not shown"] if older_trials else []
        apart = [column for column in _APART if group[column].nunique() > 1]
        for _, together in group.groupby(_APART[:-1], sort=True, observed=True):
            largest = together["world_size"].max()
            for world_size, own in together.groupby("world_size", sort=True):
                named = own[_APART].iloc[0]
                part = own if world_size == 1 else _with_reference(own, together, settings)
                details = [f"{column} {named[column]}" if column != "settings" else str(named[column]) for column in apart]
                across = world_sizes_of(together, settings_of(together, settings)[0].delta) if world_size == largest else None
                boards.append(_board(part, settings, details, notes, across))
    return boards


def _with_reference(own: "pd.DataFrame", together: "pd.DataFrame", given: Mapping[str, Any] | None) -> "pd.DataFrame":
    """The trials of a larger world size, and the baseline's at world size 1 where it exists at that alone."""
    import pandas as pd

    baseline = settings_of(own, given)[0].baseline
    if (own["stack"] == baseline).any():
        return own
    reference = together[(together["world_size"] == 1) & (together["stack"] == baseline)]
    return pd.concat([own.assign(reference=False), reference.assign(reference=True)]) if len(reference) else own


def _current(frame: "pd.DataFrame") -> "tuple[pd.DataFrame, pd.DataFrame]":
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


def _board(
    frame: "pd.DataFrame",
    given: Mapping[str, Any] | None,
    details: list[str],
    notes: list[str],
    across: WorldSizes | None,
) -> Leaderboard:
    trial = frame.iloc[0]
    settings, problems = settings_of(frame, given)
    rows = rows_of(frame)
    baseline = settings.baseline or next((row.stack for row in rows if row.techniques == "untouched"), None)
    measures = measures_of(settings.columns)
    table = Table(rows, baseline, settings.delta, settings.quality.metric, settings.quality.direction, measures)
    by = settings.ranking.by or _first_measured(rows)
    unranked = _unranked(table, settings.quality, by)
    ranks = _ranks(table, by, settings, unranked)
    ranked = table.frame(ranks, unranked)
    by_label = {row.label: row for row in rows}
    scaling = scaling_of([by_label[label] for label in ranked["stack"]], table.base, settings.fit_from)
    counts = [len(rounds) for row in rows if (rounds := row.rounds())] or [0]
    title = f"{trial['suite']}: {trial['model']} on {trial['workload']}" + "".join(f", {detail}" for detail in details)
    return Leaderboard(
        title=title,
        machine=str(trial["machine"]),
        suite=str(trial["suite"]),
        model=str(trial["model"]),
        workload=str(trial["workload"]),
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
                    *_round_notes(counts),
                    *table.notes,
                    *chance_notes(rows, settings.quality.metric, unranked, baseline),
                    *_rank_notes(rows, trial),
                    *(scaling.notes if scaling else ()),
                    *(across.notes if across else ()),
                    *_losses(rows),
                    *notes,
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
        table=table,
        trials=frame,
        extra_columns={measure.key: measure.metric for measure in measures if measure.metric in settings.columns},
    )


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
            reasons[row.label] = f"no {by}" if by else "nothing to rank by"
        elif quality.floor is not None and ratio is None and measured:
            reasons[row.label] = "no quality measured"
        elif quality.floor is not None and ratio is not None:
            worse = ratio > quality.floor if quality.direction == "lower" else ratio < 1 / quality.floor
            if worse:
                reasons[row.label] = "below quality floor"
    return reasons


def _ranks(table: Table, by: str | None, settings: Settings, unranked: Mapping[str, str]) -> dict[str, tuple[int, int]]:
    """Rank ranges: 1 + rows clearly better … N - rows clearly worse, all pairs Holm-adjusted together."""
    rows = [row for row in table.rows if row.label not in unranked]
    if by is None:
        return {}
    shapes = common_shapes(table.rows, by)
    if not shapes:
        return {}
    # A metric's name says its direction: what is counted per second is better when higher.
    better = settings.ranking.better or ("higher" if "_per_s" in by else "lower")
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
