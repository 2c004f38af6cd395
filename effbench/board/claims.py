"""Published claims against the records of a board: SUPPORTED, REFUTED, UNCLEAR or NOT-APPLICABLE, with the evidence."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any

from effbench.board.evidence import (
    Evidence,
    NotMeasuredError,
    cells_of,
    exponent,
    ratio,
    reference_of,
    row_of,
    steps_along,
    value,
)
from effbench.board.measures import better_of
from effbench.board.parts import OLDER
from effbench.board.stats import MIN_ROUNDS, VERDICT_LEVEL, Interval
from effbench.board.verdict import UNCLEAR
from effbench.plan.claim import Claim

if TYPE_CHECKING:
    import pandas as pd

    from effbench.board.leaderboard import Leaderboard

SUPPORTED = "SUPPORTED"
REFUTED = "REFUTED"
NOT_APPLICABLE = "NOT-APPLICABLE"
VERDICTS = (SUPPORTED, REFUTED, UNCLEAR, NOT_APPLICABLE)
LEVEL = 1 - VERDICT_LEVEL
"""Of the intervals that claims are judged by, and that are shown with them."""
CLAIM_COLUMNS = (
    "machine", "suite", "model", "workload", "title", "verdict", "says", "source", "stack", "metric", "relation", "value",
    "where", "estimate", "low", "high", "rounds", "cells", "evidence",
)  # fmt: skip
"""A row per judgement; `where` is JSON, `cells` are ids between spaces."""
_BOARD_PLACES = ("model", "workload", "world_size")


@dataclass(frozen=True)
class Judgement:
    """A claim and what the records of one board say of it."""

    claim: Claim
    machine: str
    suite: str
    model: str
    workload: str
    title: str
    """Of the board."""
    verdict: str
    evidence: str
    """One line of words."""
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    """The interval at LEVEL; None of counts, and below two rounds."""
    rounds: int = 0
    cells: tuple[str, ...] = ()
    """Ids of the stack's cells that it rests on."""


@dataclass(frozen=True)
class _Found:
    """A verdict with its evidence, before it is put into words."""

    verdict: str
    evidence: Sequence[Evidence]
    words: str

    @property
    def interval(self) -> Interval | None:
        """Where it is a single quantity's."""
        return self.evidence[0].interval if len(self.evidence) == 1 else None


def judge(board: "Leaderboard") -> list[Judgement]:
    """Every claim of the board's suite, in its order; one that is about another board is NOT-APPLICABLE here."""
    return [_judged(board, claim) for claim in board.settings.claims]


def judge_all(boards: "Sequence[Leaderboard]") -> list[Judgement]:
    """The claims of all boards, each on the boards that it is about; once, as NOT-APPLICABLE, where it is about none."""
    found: list[Judgement] = []
    for _, group in groupby(sorted(boards, key=_owner), key=_owner):
        own = list(group)
        claims = {claim.model_dump_json(): claim for board in own for claim in board.settings.claims}
        for claim in claims.values():
            concerned = [board for board in own if not _elsewhere(board, claim)]
            found += [_judged(board, claim) for board in concerned or own[:1]]
    return found


def claims_frame(boards: "Sequence[Leaderboard]") -> "pd.DataFrame":
    """All judgements, tidy; columns as CLAIM_COLUMNS."""
    import pandas as pd

    entries = [_entry(judgement) for judgement in judge_all(boards)]
    frame = pd.DataFrame(entries, columns=[*CLAIM_COLUMNS])
    return frame.astype(dict.fromkeys(("value", "estimate", "low", "high"), float))


def verdict_of(found: Evidence, side: str, bound: float, tolerance: float = 0.0) -> str:
    """SUPPORTED where the whole interval is on the claimed side of the bound, REFUTED where it is wholly on the other.

    `equals` means from bound / (1 + tolerance) to bound · (1 + tolerance). Fewer than MIN_ROUNDS rounds of what is measured
    are UNCLEAR, whatever they say; a count is compared as it is.
    """
    interval = found.interval
    low, high = (interval.estimate, interval.estimate) if found.exact else (interval.low, interval.high)
    if low is None or high is None or math.isnan(low) or (interval.n < MIN_ROUNDS and not found.exact):
        return UNCLEAR
    if side == "equals":
        first, last = sorted((bound / (1 + tolerance), bound * (1 + tolerance)))
        held, broken = first <= low and high <= last, high < first or low > last
    elif side == "below":
        held, broken = high < bound, low >= bound
    else:
        held, broken = low > bound, high <= bound
    return SUPPORTED if held else REFUTED if broken else UNCLEAR


def _owner(board: "Leaderboard") -> tuple[str, str]:
    return board.machine, board.suite


def _judged(board: "Leaderboard", claim: Claim) -> Judgement:
    about = {"claim": claim} | {name: getattr(board, name) for name in ("machine", "suite", "model", "workload", "title")}
    if reason := _elsewhere(board, claim):
        return Judgement(**about, verdict=NOT_APPLICABLE, evidence=reason)
    try:
        found = _KINDS[claim.parts.kind](board, claim)
    except NotMeasuredError as missing:
        return Judgement(**about, verdict=NOT_APPLICABLE, evidence=str(missing))
    numbers: dict[str, Any] = {}
    if (interval := found.interval) and interval.n:
        numbers = {"estimate": interval.estimate, "low": interval.low, "high": interval.high}
    rounds = min(one.interval.n for one in found.evidence)
    cells = cells_of(board, found.evidence)
    words = f"{found.words}, {_counted(rounds, 'round')}, {_counted(len(cells), 'cell')}; claimed {_claimed(claim, board)}"
    return Judgement(**about, verdict=found.verdict, evidence=words, rounds=rounds, cells=cells, **numbers)


def _elsewhere(board: "Leaderboard", claim: Claim) -> str:
    """Why a claim is not about this board; empty where it is."""
    for key in _BOARD_PLACES:
        if key in claim.where and claim.where[key] != getattr(board, key):
            return f"no board of {key} = {claim.where[key]} here"
    if not any(row.stack == claim.stack and not row.reference for row in board.table.rows):
        older = next((f"; {note}" for note in board.notes if note.endswith(OLDER)), "")
        return f"no record of `{claim.stack}` here{older}"
    return ""


def _side(claim: Claim) -> tuple[str, float]:
    """On which side of which number the quantity is claimed to be."""
    if claim.parts.kind == "better":
        return "above" if better_of(claim.metric) == "higher" else "below", 1.0
    return claim.parts.side, claim.value or 0.0


def _single(board: "Leaderboard", claim: Claim, found: Evidence) -> _Found:
    side, bound = _side(claim)
    unit = "×" if claim.parts.kind in ("ratio", "better") else ""
    return _Found(verdict_of(found, side, bound, claim.within or board.delta), [found], _figure(found, unit))


def _ratio(board: "Leaderboard", claim: Claim) -> _Found:
    row = row_of(board, claim.stack, claim)
    return _single(board, claim, ratio(board, claim, row, reference_of(board, row, claim.parts.subject, claim), LEVEL))


def _value(board: "Leaderboard", claim: Claim) -> _Found:
    return _single(board, claim, value(claim, row_of(board, claim.stack, claim), LEVEL))


def _exponent(board: "Leaderboard", claim: Claim) -> _Found:
    evidence = exponent(board, claim, row_of(board, claim.stack, claim), LEVEL)
    found, lengths = _single(board, claim, evidence), sorted(shape.seq_len for shape in evidence.shapes)
    return replace(found, words=f"exponent {found.words} over {lengths[0]} to {lengths[-1]} tokens")


def _along(board: "Leaderboard", claim: Claim) -> _Found:
    """Each value of the axis against the one before: all must go the claimed way, one that goes the other refutes.

    That all do needs no adjustment, that one does not is looked for among several (Bonferroni).
    """
    rows = steps_along(board, claim, claim.parts.subject)
    pairs = list(pairwise(rows))
    shown = [ratio(board, claim, after, before, LEVEL) for before, after in pairs]
    adjusted = [ratio(board, claim, after, before, 1 - VERDICT_LEVEL / len(pairs)) for before, after in pairs]
    ways = {"rises": ["above"], "falls": ["below"], "monotone": ["above", "below"]}[claim.parts.side]
    found = [_all_one_way(shown, adjusted, side) for side in ways]
    word = SUPPORTED if SUPPORTED in found else REFUTED if {*found} == {REFUTED} else UNCLEAR
    return _Found(word, shown, "steps of " + ", ".join(_figure(one, "×") for one in shown))


def _all_one_way(shown: Sequence[Evidence], adjusted: Sequence[Evidence], side: str) -> str:
    if all(verdict_of(one, side, 1.0) == SUPPORTED for one in shown):
        return SUPPORTED
    return REFUTED if any(verdict_of(one, side, 1.0) == REFUTED for one in adjusted) else UNCLEAR


_KINDS: "dict[str, Callable[[Leaderboard, Claim], _Found]]" = {
    "ratio": _ratio,
    "better": _ratio,
    "value": _value,
    "exponent": _exponent,
    "along": _along,
}


def _figure(found: Evidence, unit: str) -> str:
    """`0.067× [0.066, 0.068]`."""
    interval = found.interval
    if not interval.n:
        return "no round of one session has both"
    estimate = f"{_number(interval.estimate)}{unit}"
    if found.exact:
        return f"{estimate} (counted)"
    if interval.low is None or interval.high is None:
        return f"{estimate} (no interval)"
    return f"{estimate} [{_number(interval.low)}, {_number(interval.high)}]"


def _claimed(claim: Claim, board: "Leaderboard") -> str:
    parts = claim.parts
    if parts.kind == "along":
        return f"{'monotone' if parts.side == 'monotone' else f'that it {parts.side}'} along {parts.subject}"
    side, bound = _side(claim)
    return f"{_number(bound)} ± {100 * (claim.within or board.delta):.3g} %" if side == "equals" else f"{side} {_number(bound)}"


def _number(number: float) -> str:
    """Four significant digits, none of them after whole thousands."""
    return f"{number:.4g}" if abs(number) < 1e4 or abs(number) >= 1e12 else f"{number:,.0f}"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _entry(judgement: Judgement) -> dict[str, Any]:
    claim = judgement.claim
    return {
        **{name: getattr(judgement, name) for name in CLAIM_COLUMNS if hasattr(judgement, name)},
        **{name: getattr(claim, name) for name in ("says", "source", "stack", "metric", "relation", "value")},
        "where": json.dumps(claim.where),
        "cells": " ".join(judgement.cells),
    }


def counts(judgements: Iterable[Judgement]) -> dict[str, int]:
    """How many of each verdict, in the order of VERDICTS."""
    words = [judgement.verdict for judgement in judgements]
    return {verdict: words.count(verdict) for verdict in VERDICTS}
