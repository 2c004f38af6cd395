"""Which rows of a board no other beats on all of several metrics, and how sure the rounds are of it."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from effbench.board.chance import AT_CHANCE, NO_SAMPLES, NO_SCORE
from effbench.board.leaderboard import BELOW_FLOOR, LEAKS, Leaderboard
from effbench.board.noise import SharedNoise
from effbench.board.objectives import Objective, Place, objective
from effbench.board.rows import Row
from effbench.board.stats import MIN_ROUNDS, VERDICT_LEVEL, Array
from effbench.board.verdict import Better
from effbench.plugin.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

Flags = NDArray[np.bool_]
OWN_COLUMNS = ("probability", "on_front", "knee", "dominated_by", "dominated_clearly")
_MIN_FRONT = 3
"""Of two rows, neither lies between."""


@dataclass(frozen=True)
class Front:
    """The Pareto front of one board."""

    board: Leaderboard
    metrics: tuple[str, ...]
    better: tuple[Better, ...]
    """Which way each is better."""
    full_names: dict[str, str]
    """What a metric is called in records, where a column's key or a score was asked for."""
    rows: "pd.DataFrame"
    """A row per stack that has all metrics, the front first: `stack`, a column of values per metric, `probability` (of being
    on the front; missing where the rounds cannot tell), `on_front` (by the estimates), `knee`, `dominated_by` (names, separated
    by commas) and `dominated_clearly` (whether the rounds are sure of those, or only the estimates name them)."""
    knee: str | None
    """The row of the front that is nearest to the best of every metric; None where the front has fewer than three."""
    excluded: dict[str, str]
    """Why a row of the board cannot be on the front."""
    notes: list[str]


def default_metrics(board: Leaderboard) -> tuple[str, ...]:
    """What a board ranks by and its quality score; empty where no row has one of the two."""
    wanted = (board.ranked_by or "", f"quality.{board.quality_metric}")
    known = {metric for row in board.table.rows for metric in row.values}
    return (wanted[0], board.quality_metric) if known.issuperset(wanted) else ()


def fronts_of(boards: Sequence[Leaderboard]) -> list[Front]:
    """The front of each board over the metrics of its settings, or else its default; without rows where it lacks them.

    InputError where no board has a front.
    """
    fronts: list[Front] = []
    problems: list[InputError] = []
    for board in boards:
        metrics = tuple(board.settings.front or ()) or default_metrics(board)
        try:
            if not metrics:
                raise InputError("no row has both a speed and a quality score: choose metrics")
            fronts.append(pareto(board, metrics))
        except InputError as problem:
            problems.append(problem)
            fronts.append(Front(board, (), (), {}, _frame([], (), board), None, {}, [f"no front: {problem}"]))
    if problems and len(problems) == len(fronts):
        raise problems[0]
    return fronts


def pareto(board: Leaderboard, metrics: Sequence[str]) -> Front:
    """The front of a board over two metrics or more, named as `objectives.objective` says.

    A row dominates another where it is at least as good on every metric and better on one. A row's probability of being on the
    front is the share of joint draws of all rows' means (see `noise`) in which no other dominates it; comparing uncertain
    designs by such probabilities is Teich's (2001, Pareto-front exploration with uncertain objectives) and Hughes's (2001,
    Evolutionary multi-objective ranking with uncertainty and noise). It is of each row by itself, whatever their
    number. A row dominates clearly where it does in a share of 1 - VERDICT_LEVEL of the draws.

    The knee is the row of the front that has the smallest Euclidean distance to the ideal point (compromise programming, Zeleny
    1973), each metric scaled to its range over the front, ratios on the log scale.

    InputError for fewer than two metrics, or one that no row has.
    """
    objectives = [objective(board, text) for text in metrics]
    if len({found.metric for found in objectives}) < max(2, len(objectives)):
        raise InputError(f"a front takes two different metrics or more, not {', '.join(metrics) or 'none'}")
    excluded = _excluded(board, objectives)
    rows = [row for row in board.table.rows if row.label not in excluded]
    reference = _reference(board, rows, objectives)
    noise = SharedNoise(number for row in board.table.rows for number in row.rounds())
    places = [[found.place(row, reference, noise) for found in objectives] for row in rows] if reference else []
    estimates = np.array([[place.estimate for place in own] for own in places]).reshape(len(rows), len(objectives))
    dominates = np.array([_dominates(own, estimates) for own in estimates], dtype=bool).reshape(len(rows), len(rows))
    probability, surely = _probabilities(places, dominates)
    on_front: Flags = np.logical_not(dominates.any(axis=0))
    knee = _knee(estimates, on_front)
    entries: list[dict[str, Any]] = []
    for j, row in enumerate(rows):
        clearly = surely[:, j] >= 1 - VERDICT_LEVEL
        by = [rows[i].label for i in np.flatnonzero(clearly if clearly.any() else dominates[:, j])]
        own = (probability[j], bool(on_front[j]), j == knee, ", ".join(by), bool(clearly.any()))
        values = {found.name: found.value(row) for found in objectives}
        entries.append({"stack": row.label} | values | dict(zip(OWN_COLUMNS, own, strict=True)))
    return Front(
        board=board,
        metrics=tuple(found.name for found in objectives),
        better=tuple(found.better for found in objectives),
        full_names={found.name: found.metric for found in objectives},
        rows=_frame(entries, objectives, board),
        knee=None if knee is None else rows[knee].label,
        excluded=excluded,
        notes=[*_notes(rows, probability, places), *_hidden(board)],
    )


def _excluded(board: Leaderboard, objectives: Sequence[Objective]) -> dict[str, str]:
    """Rows that cannot be on a front, and why. The quality floor is for those fronts that do not look at quality."""
    never = (LEAKS, AT_CHANCE, NO_SCORE, NO_SAMPLES, *(() if any(o.is_score for o in objectives) else (BELOW_FLOOR,)))
    found = {}
    for row in board.table.rows:
        reason = board.unranked.get(row.label, "")
        lacking = [o.name for o in objectives if o.value(row) is None]
        if row.reference:
            found[row.label] = "of another world size"
        elif reason.startswith(never):
            found[row.label] = reason
        elif lacking:
            found[row.label] = f"no {', '.join(lacking)} on the cells that are compared"
    return found


def _reference(board: Leaderboard, rows: Sequence[Row], objectives: Sequence[Objective]) -> Row | None:
    """The row that all are compared with: the baseline that most have, or any where it lacks a metric."""
    bases = Counter(base for row in rows if (base := board.table.base[row.label]) is not None)
    whole = (base for base, _ in bases.most_common() if all(o.value(base) is not None for o in objectives))
    return next(whole, None) or next(iter(rows), None)


def _dominates(one: Array, others: Array) -> Flags:
    """Whether it dominates each of the others; metrics along the second axis of the others, draws along further ones."""
    return np.asarray((one >= others).all(axis=1) & (one > others).any(axis=1), dtype=bool)


def _probabilities(places: Sequence[Sequence[Place]], dominates: Flags) -> tuple[list[float | None], Array]:
    """Each row's of being on the front, and each pair's that the first dominates the second (0 where that is not known).

    A row that lacks draws has none, nor has one that it dominates by the estimates: not knowing is no sign of being ahead.
    """
    count = len(places)
    known = [i for i, own in enumerate(places) if all(place.draws is not None for place in own)]
    unknown = [i for i in range(count) if i not in known]
    surely = np.zeros((count, count))
    found: list[float | None] = [None] * count
    if known:
        draws = np.array([[place.draws for place in places[i]] for i in known])
        dominated = np.zeros((len(known), draws.shape[2]), dtype=bool)
        for i, own in zip(known, draws, strict=True):
            by = _dominates(own, draws)
            surely[i, known] = by.mean(axis=1)
            dominated |= by
        for j, share in zip(known, dominated.mean(axis=1), strict=True):
            found[j] = None if dominates[unknown, j].any() else float(1 - share)
    return found, surely


def _knee(estimates: Array, on_front: Flags) -> int | None:
    """The row of the front that is nearest to the ideal point."""
    front = np.flatnonzero(on_front)
    if len(front) < _MIN_FRONT:
        return None
    own = estimates[front]
    span = np.ptp(own, axis=0)
    short_of_best = (own.max(axis=0) - own) / np.where(span > 0, span, 1)
    return int(front[np.argmin((short_of_best**2).sum(axis=1))])


def _frame(entries: Sequence[dict[str, Any]], objectives: Sequence[Objective], board: Leaderboard) -> "pd.DataFrame":
    """Of the rows that the board shows."""
    import pandas as pd

    names = [found.name for found in objectives]
    frame = pd.DataFrame(entries, columns=["stack", *names, *OWN_COLUMNS])
    frame = frame.astype(dict.fromkeys([*names, "probability"], float))
    shown = frame[frame["stack"].isin(board.rows["stack"])]
    order = ["on_front", "probability", "stack"]
    return shown.sort_values(order, ascending=[False, False, True], na_position="last").reset_index(drop=True)


def _notes(rows: Sequence[Row], probability: Sequence[float | None], places: Sequence[Sequence[Place]]) -> Iterator[str]:
    few = [row.label for row, own in zip(rows, places, strict=True) if any(place.draws is None for place in own)]
    behind = [row.label for row, p in zip(rows, probability, strict=True) if p is None and row.label not in few]
    if few:
        yield (
            f"no probability of {_listed(few)}: it takes {MIN_ROUNDS} rounds with the baseline in one session, and for "
            "quality the scores of single documents"
        )
    if behind:
        yield f"nor of {_listed(behind)}: by the estimates, one of those dominates it"


def _hidden(board: Leaderboard) -> Iterator[str]:
    if hidden := len(board.table.rows) - len(board.rows):
        yield f"{hidden} of {len(board.table.rows)} rows are hidden; the front is that of all"


def _listed(labels: Sequence[str]) -> str:
    return ", ".join(f"`{label}`" for label in labels)
