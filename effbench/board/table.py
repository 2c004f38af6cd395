"""The numbers of one leaderboard: every row against its baseline."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from effbench.board.chance import NO_SCORE, chance, not_above_chance
from effbench.board.rows import Row, Shape, common_shapes, log_ratios, quality_difference
from effbench.board.stats import MIN_ROUNDS, Interval, QualityDraws, holm, holm_intervals
from effbench.board.verdict import QUALITY, SIZE, SPEED, UNCLEAR, Better, Words, verdict

if TYPE_CHECKING:
    import pandas as pd


class Measure(NamedTuple):
    """A metric that a leaderboard shows as a ratio to the baseline."""

    key: str
    """Names its columns: `key` (geometric mean over the compared cells), `key_ratio`, `key_low`, `key_high`, `key_verdict`."""
    metric: str
    better: Better
    words: Words
    exact: bool = False
    """A count rather than a measurement: where every round gives the same value, one round is enough."""


MEASURES = (
    Measure("train_speed", "train.tokens_per_s", "higher", SPEED),
    Measure("prefill_speed", "infer.prefill_tokens_per_s", "higher", SPEED),
    Measure("decode_speed", "infer.decode_tokens_per_s", "higher", SPEED),
    Measure("train_memory", "train.peak_memory_bytes", "lower", SIZE),
    Measure("infer_memory", "infer.peak_memory_bytes", "lower", SIZE),
    Measure("trainable", "parameters.trainable", "lower", SIZE, exact=True),
    Measure("checkpoint", "checkpoint.bytes", "lower", SIZE, exact=True),
    Measure("sparse", "checkpoint.sparse_bytes", "lower", SIZE, exact=True),
    Measure("bits", "checkpoint.bits_per_weight", "lower", SIZE, exact=True),
    Measure("delta", "checkpoint.delta_bytes", "lower", SIZE, exact=True),
    Measure("kv_cache", "infer.kv_cache_bytes", "lower", SIZE, exact=True),
)
_QUALITY_COLUMNS = ["quality", "quality_chance", "quality_difference", "quality_low", "quality_high", "quality_verdict"]


def columns() -> list[str]:
    """The columns of a leaderboard's rows."""
    measured = [f"{m.key}{part}" for m in MEASURES for part in ("", "_ratio", "_low", "_high", "_verdict")]
    return ["rank", "stack", "techniques", *measured, *_QUALITY_COLUMNS, "steps", "cells", "rounds", "status"]


@dataclass
class Table:
    """Rows of one board, compared with the baseline on the cells that all of them completed."""

    rows: Sequence[Row]
    baseline: str | None
    delta: float
    quality_name: str
    quality_better: Better
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
        self._quality_shapes = common_shapes(self._quality_rows, f"quality.{self.quality_name}")

    def frame(self, ranks: Mapping[str, tuple[int, int]], unranked: Mapping[str, str]) -> "pd.DataFrame":
        """All columns, ranked rows first."""
        import pandas as pd

        cells: dict[str, dict[str, Any]] = {row.label: {} for row in self.rows}
        for measure in MEASURES:
            self._measure(measure, cells)
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
                "status": _status(row, unranked.get(row.label, "")),
            }
        last_place = (len(self.rows) + 1, 0)
        order = sorted(self.rows, key=lambda row: (ranks.get(row.label, last_place), row.label))
        return pd.DataFrame([cells[row.label] for row in order], columns=columns())

    def quality_ratio(self, row: Row) -> float | None:
        """Quality relative to the baseline's, or None where it cannot be compared."""
        base = self.base[row.label]
        mine, theirs = self._quality_of(row), base and self._quality_of(base)
        return None if mine is None or not theirs else mine / theirs

    def not_above_chance(self, row: Row) -> str | None:
        """Why a row's score shows nothing, or None: see `chance`."""
        if row not in self._quality_rows:
            known = any(chance(other, self.quality_name) is not None for other in self.rows)
            return NO_SCORE if known else None
        return not_above_chance(row, self.quality_name, self._quality_shapes, self.quality_better)

    def _measure(self, measure: Measure, cells: dict[str, dict[str, Any]]) -> None:
        shapes = common_shapes(self.rows, measure.metric)
        self._note_common(measure.metric, shapes)
        measured: list[tuple[Row, Row]] = []
        for row in self.rows:
            base, value = self.base[row.label], row.mean(measure.metric, shapes)
            theirs = None if base is None else base.mean(measure.metric, shapes)
            cells[row.label][measure.key] = value
            if base is None or value is None or theirs is None:
                if base is not None and all(r.shapes(measure.metric) or measure.metric in r.disturbed for r in (row, base)):
                    # One of them has disturbed trials alone: further rounds may find a quieter machine.
                    cells[row.label][f"{measure.key}_verdict"] = UNCLEAR
            elif base is row:
                cells[row.label] |= {f"{measure.key}_ratio": 1.0, f"{measure.key}_verdict": "baseline"}
            elif measure.exact and row.constant(measure.metric) and base.constant(measure.metric):
                exact = Interval(value / theirs, None, None, 1)
                word = verdict(exact, self.delta, measure.better, measure.words, exact=True)
                cells[row.label] |= {f"{measure.key}_ratio": exact.estimate, f"{measure.key}_verdict": word}
            else:
                measured.append((row, base))
        logs = [log_ratios(row, base, measure.metric, shapes) for row, base in measured]
        for (row, base), (shown, adjusted) in zip(measured, holm_intervals(logs, self.bound), strict=True):
            if not shown.n:
                self.notes.append(f"`{row.label}` and `{base.label}` share no complete round of one session: no ratio")
                cells[row.label][f"{measure.key}_verdict"] = UNCLEAR
                continue
            word = verdict(adjusted, self.delta, measure.better, measure.words)
            cells[row.label] |= _interval(measure.key, "_ratio", shown) | {f"{measure.key}_verdict": word}

    def _quality(self, cells: dict[str, dict[str, Any]]) -> None:
        differences: dict[str, tuple[QualityDraws, float]] = {}
        for row in self._quality_rows:
            base = self.base[row.label]
            cells[row.label] |= {"quality": self._quality_of(row), "quality_chance": chance(row, self.quality_name)}
            if base is row and self._quality_of(row) is not None:
                cells[row.label] |= {"quality_difference": 0.0, "quality_verdict": "baseline"}
            elif base is not None and base in self._quality_rows and (reference := self._quality_of(base)):
                found = quality_difference(row, base, self.quality_name, self._quality_shapes)
                if found is not None:
                    differences[row.label] = (found, reference)
        # δ is relative: a difference counts from δ times the baseline's own score on, as bounds of the ratio 1 + d / baseline.
        low, high = 1 / (1 + self.delta) - 1, self.delta
        tested = {
            label: d.p(low * b, high * b) for label, (d, b) in differences.items() if len(d.draws) and d.rounds >= MIN_ROUNDS
        }
        levels = dict(zip(tested, holm(list(tested.values())), strict=True))
        for label, (found, reference) in differences.items():
            word = UNCLEAR
            if label in levels:
                adjusted = found.interval(1 - levels[label]).relative_to(reference)
                word = verdict(adjusted, self.delta, self.quality_better, QUALITY)
            cells[label] |= _interval("quality", "_difference", found.interval()) | {"quality_verdict": word}

    def _quality_of(self, row: Row) -> float | None:
        values = row.values.get(f"quality.{self.quality_name}", {})
        if row not in self._quality_rows or not self._quality_shapes <= {trial.shape for trial in values}:
            return None
        found = [value for trial, value in values.items() if trial.shape in self._quality_shapes]
        return fmean(found) if found else None

    def _with_same_text(self, bases: Sequence[Row]) -> list[Row]:
        """Rows whose quality was measured on the same text as the baseline's."""
        scored = [row for row in (*bases, *self.rows) if row.shapes(f"quality.{self.quality_name}")]
        same = [row for row in self.rows if row in scored and row.data == scored[0].data]
        for row in self.rows:
            if row in scored and row not in same:
                self.notes.append(f"`{row.label}`: quality was measured on other text and is not shown")
        return same

    def _note_common(self, metric: str, shapes: set[Shape]) -> None:
        """Say where the compared cells are fewer than those that some row completed."""
        everywhere = set[Shape]().union(*(row.shapes(metric) for row in self.rows))
        phase = metric.partition(".")[0]
        if shapes < everywhere and phase in ("train", "infer"):
            counted = (
                f"compared on {len(shapes)} of {len(everywhere)} cells, those" if shapes else "nothing compared, no cell is one"
            )
            self.notes.append(f"{phase}: {counted} that all stacks completed")


def _base_of(row: Row, bases: Sequence[Row]) -> Row | None:
    """The baseline at this row's option values: a baseline without the option is the one of every value.

    Where the baseline's own settings were changed between runs, the variant that shares most rounds with the row.
    """
    if row in bases:
        return row
    fitting = [base for base in bases if base.options.items() <= row.options.items()]
    trials = {trial for values in row.values.values() for trial in values}
    return max(fitting, key=lambda base: len(trials & {t for v in base.values.values() for t in v}), default=None)


def _interval(key: str, suffix: str, interval: Interval) -> dict[str, Any]:
    return {f"{key}{suffix}": interval.estimate, f"{key}_low": interval.low, f"{key}_high": interval.high}


def _status(row: Row, unranked: str) -> str:
    lost = Counter(status for status, _ in row.lost().values())
    words = [f"{count} {status}" for status, count in lost.items()] + ([unranked] if unranked else [])
    return ", ".join(words) or "ok"
