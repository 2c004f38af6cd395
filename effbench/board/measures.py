"""What a board compares, and one measure of many rows, each beside the row it is compared with."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from effbench.board.rows import Row, Shape, common_shapes, log_ratios
from effbench.board.stats import Interval, holm_intervals
from effbench.board.verdict import AMOUNT, SIZE, SPEED, UNCLEAR, Better, Words, verdict
from effbench.plugin.workload import higher_is_better


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
    Measure("loss", "train.final_loss", "lower", AMOUNT),
)


_HIGHER = ("_per_s", "_mfu", ".mfu", "agreement")
"""Ends of metrics of which more is better; of all others less is."""


def better_of(metric: str) -> Better:
    """Which way a metric or score is better, as its name says, so that it does not depend on which plugins are installed."""
    score = metric.removeprefix("quality.")
    return "higher" if (higher_is_better(score) if score != metric else metric.endswith(_HIGHER)) else "lower"


def measures_of(shown: Sequence[str]) -> tuple[Measure, ...]:
    """All of them, and the further metrics that a suite shows; whether those are better lower is not said."""
    known = {measure.metric for measure in MEASURES}
    return MEASURES + tuple(Measure(metric, metric, "lower", AMOUNT) for metric in dict.fromkeys(shown) if metric not in known)


def compare(measure: Measure, bases: Mapping[Row, Row | None], delta: float, notes: list[str]) -> dict[Row, dict[str, Any]]:
    """Each row's columns of a measure, on the cells that all of them completed; `bases` says what each is compared with.

    Verdicts are Holm-adjusted over the rows. What a reader must know of the comparison is added to the notes.
    """
    shapes = common_shapes(list(bases), measure.metric)
    notes += _common_notes(list(bases), measure.metric, shapes)
    cells: dict[Row, dict[str, Any]] = {}
    measured: list[tuple[Row, Row]] = []
    for row, base in bases.items():
        zeros = [None if r is None else r.mean_with_zeros(measure.metric) for r in (row, base)]
        value, theirs = row.mean(measure.metric, shapes), None if base is None else base.mean(measure.metric, shapes)
        cells[row] = {measure.key: value if zeros[0] is None else zeros[0]}
        if zeros != [None, None]:
            continue  # of a metric that is zero somewhere there is no ratio
        if base is None or value is None or theirs is None:
            if base is not None and all(r.shapes(measure.metric) or measure.metric in r.disturbed for r in (row, base)):
                # One of them has disturbed trials alone: further rounds may find a quieter machine.
                cells[row][f"{measure.key}_verdict"] = UNCLEAR
        elif base is row:
            cells[row] |= {f"{measure.key}_ratio": 1.0, f"{measure.key}_verdict": "baseline"}
        elif measure.exact and row.constant(measure.metric) and base.constant(measure.metric):
            exact = Interval(value / theirs, None, None, 1)
            word = verdict(exact, delta, measure.better, measure.words, exact=True)
            cells[row] |= {f"{measure.key}_ratio": exact.estimate, f"{measure.key}_verdict": word}
        else:
            measured.append((row, base))
    logs = [log_ratios(row, base, measure.metric, shapes) for row, base in measured]
    for (row, base), (shown, adjusted) in zip(measured, holm_intervals(logs, math.log1p(delta)), strict=True):
        if not shown.n:
            notes.append(f"`{row.label}` and `{base.label}` share no complete round of one session: no ratio")
            cells[row][f"{measure.key}_verdict"] = UNCLEAR
            continue
        word = verdict(adjusted, delta, measure.better, measure.words)
        cells[row] |= interval_columns(measure.key, "_ratio", shown) | {f"{measure.key}_verdict": word}
    return cells


def interval_columns(key: str, suffix: str, interval: Interval) -> dict[str, Any]:
    """The columns of an estimate and its interval."""
    return {f"{key}{suffix}": interval.estimate, f"{key}_low": interval.low, f"{key}_high": interval.high}


def _common_notes(rows: list[Row], metric: str, shapes: set[Shape]) -> Iterator[str]:
    """Say where the compared cells are fewer than those that some row completed."""
    everywhere = set[Shape]().union(*(row.shapes(metric) for row in rows))
    phase = metric.partition(".")[0]
    if shapes < everywhere and phase in ("train", "infer"):
        some = f"compared on {len(shapes)} of {len(everywhere)} cells, those"
        counted = some if shapes else "nothing compared, no cell is one"
        yield f"{phase}: {counted} that all stacks completed"
