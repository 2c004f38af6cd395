"""The numbers of one leaderboard: every row against its baseline."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any

from effbench.board.chance import NO_SCORE, chance, not_above_chance
from effbench.board.measures import MEASURES, Measure, compare, interval_columns
from effbench.board.rows import Row, common_shapes, quality_difference
from effbench.board.stats import QualityDraws
from effbench.board.verdict import Better, quality_verdicts

if TYPE_CHECKING:
    import pandas as pd


_QUALITY_COLUMNS = ["quality", "quality_chance", "quality_difference", "quality_low", "quality_high", "quality_verdict"]


def columns(measures: Sequence[Measure] = MEASURES) -> list[str]:
    """The columns of a leaderboard's rows."""
    measured = [f"{m.key}{part}" for m in measures for part in ("", "_ratio", "_low", "_high", "_verdict")]
    return ["rank", "stack", "techniques", *measured, *_QUALITY_COLUMNS, "steps", "cells", "rounds", "status"]


@dataclass
class Table:
    """Rows of one board, compared with the baseline on the cells that all of them completed."""

    rows: Sequence[Row]
    baseline: str | None
    delta: float
    quality_name: str
    quality_better: Better
    measures: Sequence[Measure] = MEASURES
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Find each row's baseline, and the cells on which quality can be compared."""
        self.bound = math.log1p(self.delta)
        bases = [row for row in self.rows if row.stack == self.baseline]
        self.base = {row.label: _base_of(row, bases) for row in self.rows}
        if not any(row.values for row in bases):
            name = f" `{self.baseline}`" if self.baseline else ""
            self.notes.append(f"no finished trial of the baseline{name}: nothing to compare with, ratios are missing")
        self._quality_rows = self._with_same_text(bases)
        self.quality_shapes = common_shapes(self._quality_rows, f"quality.{self.quality_name}")

    def frame(self, ranks: Mapping[str, tuple[int, int]], unranked: Mapping[str, str]) -> "pd.DataFrame":
        """All columns, ranked rows first."""
        import pandas as pd

        cells: dict[str, dict[str, Any]] = {row.label: {} for row in self.rows}
        bases = {row: self.base[row.label] for row in self.rows}
        for measure in self.measures:
            for row, found in compare(measure, bases, self.delta, self.notes).items():
                cells[row.label] |= found
        self._quality(cells)
        for row in self.rows:
            first, last = ranks.get(row.label, (0, 0))
            done = sum(any(status == "ok" for status, _ in trials) for trials in row.statuses.values())
            cells[row.label] |= {
                "rank": None if not first else f"{first}" if first == last else f"{first}–{last}",
                "stack": row.label,
                "techniques": row.techniques,
                "steps": row.steps,
                "cells": f"{done}/{len(row.statuses)}",
                "rounds": len(row.rounds()),
                "status": status_of(row, unranked.get(row.label, "")),
            }
        last_place = (len(self.rows) + 1, 0)
        order = sorted(self.rows, key=lambda row: (ranks.get(row.label, last_place), row.label))
        return pd.DataFrame([cells[row.label] for row in order], columns=columns(self.measures))

    def quality_ratio(self, row: Row) -> float | None:
        """Quality relative to the baseline's, larger where the score is higher; None where it cannot be compared."""
        base = self.base[row.label]
        mine, theirs = self.quality_of(row), base and self.quality_of(base)
        if mine is None or not theirs:
            return None
        return mine / theirs if theirs > 0 else 1 + (mine - theirs) / -theirs

    def not_above_chance(self, row: Row) -> str | None:
        """Why a row's score shows nothing, or None: see `chance`."""
        if row not in self._quality_rows:
            known = any(chance(other, self.quality_name) is not None for other in self.rows)
            return NO_SCORE if known else None
        return not_above_chance(row, self.quality_name, self.quality_shapes, self.quality_better)

    def _quality(self, cells: dict[str, dict[str, Any]]) -> None:
        differences: dict[str, tuple[QualityDraws, float]] = {}
        for row in self._quality_rows:
            base = self.base[row.label]
            cells[row.label] |= {"quality": self.quality_of(row), "quality_chance": chance(row, self.quality_name)}
            if base is row and self.quality_of(row) is not None:
                cells[row.label] |= {"quality_difference": 0.0, "quality_verdict": "baseline"}
            elif base is not None and base in self._quality_rows and (reference := self.quality_of(base)):
                found = quality_difference(row, base, self.quality_name, self.quality_shapes)
                if found is not None:
                    differences[row.label] = (found, reference)
        words = quality_verdicts(differences, self.delta, self.quality_better)
        for label, (found, _) in differences.items():
            cells[label] |= interval_columns("quality", "_difference", found.interval()) | {"quality_verdict": words[label]}

    def quality_of(self, row: Row) -> float | None:
        """Mean score over the cells on which quality is compared; None where it was not measured on all, or on other text."""
        values = row.values.get(f"quality.{self.quality_name}", {})
        if row not in self._quality_rows or not self.quality_shapes <= {trial.shape for trial in values}:
            return None
        found = [value for trial, value in values.items() if trial.shape in self.quality_shapes]
        return fmean(found) if found else None

    def _with_same_text(self, bases: Sequence[Row]) -> list[Row]:
        """Rows whose quality was measured on the same text as the baseline's."""
        scored = [row for row in (*bases, *self.rows) if row.shapes(f"quality.{self.quality_name}")]
        same = [row for row in self.rows if row in scored and row.data == scored[0].data]
        for row in self.rows:
            if row in scored and row not in same:
                self.notes.append(f"`{row.label}`: quality was measured on other text and is not shown")
        return same


def _base_of(row: Row, bases: Sequence[Row]) -> Row | None:
    """The baseline at this row's option values: a baseline without the option is the one of every value.

    Where the baseline's own settings were changed between runs, the variant that shares most rounds with the row.
    """
    if row in bases:
        return row
    fitting = [base for base in bases if base.options.items() <= row.options.items()]
    trials = {trial for values in row.values.values() for trial in values}
    return max(fitting, key=lambda base: len(trials & {t for v in base.values.values() for t in v}), default=None)


def status_of(row: Row, unranked: str = "") -> str:
    """What of its cells was lost, and why it is not ranked; ok where there is nothing of that."""
    lost = Counter(status for status, _ in row.lost().values())
    words = [f"{count} {status}" for status, count in lost.items()] + ([unranked] if unranked else [])
    return ", ".join(words) or "ok"
