"""One board's trials arranged by row (a stack at one value of its option axes), and what pairs of rows can be compared on."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import zstandard

from effbench.board.stats import DRAWS, Array, QualityDraws, quality_draws
from effbench.store.packed import is_packed
from effbench.store.store import read_samples

if TYPE_CHECKING:
    import pandas as pd


class Shape(NamedTuple):
    """What a cell and its baseline's cell share on one board."""

    seq_len: int
    batch_size: int
    """The paired one."""
    dtype: str
    place: str = ""
    """Which model and workload, on a board over several."""


class Trial(NamedTuple):
    """Which trial a value comes from."""

    session: str
    round: int
    shape: Shape


@dataclass(eq=False)  # rows are told apart by identity
class Row:
    """A stack at one value of its option axes."""

    stack: str
    options: dict[str, Any]
    label: str
    techniques: str
    values: dict[str, dict[Trial, float]] = field(default_factory=dict)
    """By metric, of trials that ended well; a failed trial's numbers would be of another, easier cell."""
    samples: dict[tuple[int, Shape], str] = field(default_factory=dict)
    statuses: dict[Shape, list[tuple[str, str]]] = field(default_factory=dict)
    """(status, error) of each trial."""
    skipped_phases: dict[str, dict[Shape, str]] = field(default_factory=dict)
    """By phase, the shapes that were measured without it, and why."""
    dirty: dict[Trial, str] = field(default_factory=dict)
    """Trials that something else on the machine disturbed, and what it was; their timings are left out."""
    disturbed: set[str] = field(default_factory=set)
    """Metrics of which a dirty trial's value was left out."""
    cells: set[str] = field(default_factory=set)
    """Ids of the cells whose trials these are."""
    reference: bool = False
    """Measured at world size 1 and shown beside larger ones: compared with, never ranked."""
    leaks: str = ""
    """How the stack sees later tokens, where it does."""
    steps: int | None = None
    """Of training, where there was any."""
    data: set[str] = field(default_factory=set)
    """Hashes of the text that quality was measured on."""

    def lost(self) -> dict[Shape, tuple[str, str]]:
        """(status, error) of the shapes of which no trial ended well; what happened counts before what was then left out."""
        return {
            shape: next((trial for trial in reversed(trials) if trial[0] != "skipped"), trials[-1])
            for shape, trials in self.statuses.items()
            if all(status != "ok" for status, _ in trials)
        }

    def shapes(self, metric: str) -> set[Shape]:
        """Where the metric was measured; zeros and negatives have no ratio. A score may be 0: it is a result like any other."""
        score = metric.startswith("quality.")
        return {trial.shape for trial, value in self.values.get(metric, {}).items() if value > 0 or score}

    def any_value(self, metric: str) -> float | None:
        """Of a metric that is the same in every trial; None where there is none."""
        return next(iter(self.values.get(metric, {}).values()), None)

    def rounds(self) -> set[int]:
        """Rounds with at least one good trial."""
        return {trial.round for values in self.values.values() for trial in values}

    def mean(self, metric: str, shapes: Iterable[Shape]) -> float | None:
        """Geometric mean over shapes of the mean over rounds; None where a shape is missing."""
        found = [[v for t, v in self.values.get(metric, {}).items() if t.shape == shape and v > 0] for shape in shapes]
        if not found or not all(found):
            return None
        different = {value for values in found for value in values}
        # A count stays the integer it is: exp(log(x)) would not.
        return different.pop() if len(different) == 1 else math.exp(fmean(fmean(map(math.log, values)) for values in found))

    def mean_with_zeros(self, metric: str) -> float | None:
        """Arithmetic mean over all trials of a metric that is zero in some, which has no ratio; None of any other."""
        values = list(self.values.get(metric, {}).values())
        return fmean(values) if 0 in values else None

    def constant(self, metric: str) -> bool:
        """Whether every round of a shape gave the very same value."""
        pairs = {(trial.shape, value) for trial, value in self.values.get(metric, {}).items()}
        return len(pairs) == len({shape for shape, _ in pairs})

    @property
    def trained(self) -> bool:
        """Whether there was training, so that rounds differ in quality."""
        return any(metric.startswith("train.") for metric in self.values)


_OF_TRIAL = (
    "stack", "options", "variant", "techniques", "session", "round", "seq_len", "paired_batch", "dtype", "cell_id", "status",
    "error", "train_phase", "infer_phase", "data", "steps", "leaks", "samples", "dirty", "first", "reference", "place",
)  # fmt: skip
"""Columns of the frame, the same in all rows of a trial, that a row is made of."""


def rows_of(frame: "pd.DataFrame") -> list[Row]:
    """The rows of one board, in order of their names."""
    rows: dict[tuple[str, str, str], Row] = {}
    ambiguous = _ambiguous(frame)
    starts = _starts(frame)
    trials = frame.iloc[starts][[name for name in _OF_TRIAL if name in frame]].to_dict("records")
    metrics = list(zip(*(frame[name].tolist() for name in ("metric", "value", "unit")), strict=True))
    for entry, begin, end in zip(trials, starts, [*starts[1:], len(frame)], strict=True):
        stack, options = entry["stack"], entry["options"]
        variant = entry["variant"] if (stack, options) in ambiguous else ""
        row = rows.get((stack, options, variant))
        if row is None:
            row = rows[stack, options, variant] = _new_row(entry, variant)
        _add(row, entry, metrics[begin:end])
    return [rows[key] for key in sorted(rows)]


def _starts(frame: "pd.DataFrame") -> list[int]:
    """Where the next trial begins: whatever tells trials apart differs there from the row before."""
    begins = frame["first"].to_numpy(dtype=bool, copy=True)
    for name in ("cell_id", "session", "round", "fingerprint", "file"):
        codes, _ = frame[name].factorize()
        begins[1:] |= codes[1:] != codes[:-1]
    begins[:1] = True
    return [int(start) for start in np.flatnonzero(begins)]


def _ambiguous(frame: "pd.DataFrame") -> set[tuple[str, str]]:
    """Stacks whose learning rate or options were changed between runs: the variants must not be averaged."""
    row = ["stack", "options", "seq_len", "paired_batch", "dtype", *(["place"] if "place" in frame else [])]
    variants = frame.drop_duplicates([*row, "variant"])
    return set(variants.loc[variants.duplicated(row), ["stack", "options"]].itertuples(index=False, name=None))


def _new_row(entry: dict[Any, Any], variant: str) -> Row:
    options = json.loads(entry["options"])
    reference = bool(entry.get("reference", False))
    words = [f"{key.rpartition('.')[2]}={value}" for key, value in sorted(options.items())]
    words += [f"#{variant[:4]}"] if variant else []
    label = " ".join([entry["stack"], *words, *(["(world size 1)"] if reference else [])])
    return Row(entry["stack"], options, label, entry["techniques"], reference=reference)


def _add(row: Row, entry: dict[Any, Any], metrics: Sequence[tuple[object, float, object]]) -> None:
    """A trial, and its (metric, value, unit)."""
    trial = Trial(entry["session"], entry["round"], _shape(entry))
    row.cells.add(entry["cell_id"])
    if entry["first"]:
        row.statuses.setdefault(trial.shape, []).append((entry["status"], _text(entry["error"])))
    if entry["status"] != "ok":
        return
    for phase in ("train", "infer"):
        if (outcome := _text(entry[f"{phase}_phase"])).startswith("skipped"):
            row.skipped_phases.setdefault(phase, {})[trial.shape] = outcome.removeprefix("skipped").lstrip(": ")
    row.data.add(entry["data"])
    row.steps = row.steps or _whole(entry["steps"])
    row.leaks = row.leaks or _text(entry["leaks"])
    if sidecar := _text(entry["samples"]):
        row.samples[trial.round, trial.shape] = sidecar
    if dirty := _text(entry["dirty"]):
        row.dirty[trial] = dirty
    for metric, value, unit in metrics:
        if not isinstance(metric, str):
            continue
        if dirty and _disturbed(unit):
            row.disturbed.add(metric)
        else:
            row.values.setdefault(metric, {})[trial] = value


def _shape(entry: dict[Any, Any]) -> Shape:
    return Shape(entry["seq_len"], entry["paired_batch"], entry["dtype"], entry.get("place", ""))


def _disturbed(unit: object) -> bool:
    """Whether another program could have changed this value: bytes, counts and scores stay what they are."""
    return _text(unit) not in ("", "B", "FLOP")


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""  # pandas' missing values are None or NaN


def _whole(value: Any) -> int | None:
    return None if value is None or math.isnan(value) else int(value)


def common_shapes(rows: Sequence[Row], metric: str) -> set[Shape]:
    """Shapes that every row which has the metric at all has completed."""
    found = [shapes for row in rows if (shapes := row.shapes(metric))]
    return set.intersection(*found) if found else set()


def log_ratios(row: Row, other: Row, metric: str, shapes: set[Shape]) -> Array:
    """log(row / other) for each round in which both completed all shapes: paired within a session, averaged over shapes."""
    return np.array([*log_ratios_by_round(row, other, metric, shapes).values()])


def log_ratios_by_round(row: Row, other: Row, metric: str, shapes: set[Shape]) -> dict[int, float]:
    """The same by round, in order.

    Rounds of different places are different runs, so over several a round is the first complete one of each, then the second of
    each, and so on: a disturbed trial of one workload does not cost another's.
    """
    mine, theirs = row.values.get(metric, {}), other.values.get(metric, {})
    places: dict[str, set[Shape]] = {}
    for shape in sorted(shapes):
        places.setdefault(shape.place, set()).add(shape)
    rounds: dict[str, dict[int, dict[Shape, list[float]]]] = {place: {} for place in places}
    for trial in mine.keys() & theirs.keys():
        if trial.shape in shapes and mine[trial] > 0 and theirs[trial] > 0:
            found = rounds[trial.shape.place].setdefault(trial.round, {}).setdefault(trial.shape, [])
            found.append(math.log(mine[trial] / theirs[trial]))
    complete = [
        {number: by_shape for number, by_shape in sorted(rounds[place].items()) if by_shape.keys() == own}
        for place, own in places.items()
    ]
    together = zip(*(by_round.values() for by_round in complete), strict=False)
    numbers = complete[0] if len(complete) == 1 else count(1)
    return {
        number: fmean(fmean(logs) for by_shape in parts for logs in by_shape.values())
        for number, parts in zip(numbers, together, strict=False)
    }


def quality_difference(row: Row, baseline: Row, name: str, shapes: set[Shape], draws: int = DRAWS) -> QualityDraws | None:
    """The difference (row - baseline) in a quality score over the rounds both have; drawn where per-sample scores are."""
    pairs = quality_pairs(row, baseline, name, shapes)
    if not pairs.by_round:
        return None
    if pairs.own is None or pairs.other is None or pairs.weights is None:
        return QualityDraws(fmean(pairs.by_round.values()), np.empty(0), len(pairs.by_round))
    return quality_draws(pairs.other, pairs.own, pairs.weights, row.trained or baseline.trained, count=draws)


class QualityPairs(NamedTuple):
    """A quality score of two rows in the rounds that both have."""

    by_round: dict[int, float]
    """The difference (row - other) of the scores, in order."""
    own: Array | None = None
    """Per-sample scores (rounds, samples); None where some are missing, or of other documents."""
    other: Array | None = None
    weights: Array | None = None


def quality_pairs(row: Row, other: Row, name: str, shapes: set[Shape]) -> QualityPairs:
    """What two rows' scores can be compared on."""
    metric = f"quality.{name}"
    mine, theirs = (_by_round(r.values.get(metric, {}), shapes) for r in (row, other))
    by_round = {number: mine[number] - theirs[number] for number in sorted(mine.keys() & theirs.keys())}
    pairs = [[per_sample(r, name, number, shapes) for number in by_round] for r in (row, other)]
    scores = [scores for of_row in pairs for scores in of_row if scores is not None]
    if not scores or len(scores) < 2 * len(by_round) or any(s[0] != scores[0][0] for s in scores):
        return QualityPairs(by_round)
    values = np.stack([s[1] for s in scores])
    return QualityPairs(by_round, values[: len(by_round)], values[len(by_round) :], scores[0][2])


def _by_round(values: dict[Trial, float], shapes: set[Shape]) -> dict[int, float]:
    found: dict[int, dict[Shape, float]] = {}
    for trial, value in values.items():
        if trial.shape in shapes:
            found.setdefault(trial.round, {})[trial.shape] = value
    return {number: fmean(by_shape.values()) for number, by_shape in found.items() if by_shape.keys() == shapes}


Scores = tuple[tuple[str, ...], Array, Array]
"""Names, scores and weights of samples."""


Kind = Literal["per_sample", "chance"]
"""The row's own scores, or those of the best constant prediction on the same samples."""


def per_sample(row: Row, name: str, number: int, shapes: set[Shape], kind: Kind = "per_sample") -> Scores | None:
    """Scores by document, averaged over shapes: the documents are the same whatever the shape of training was."""
    files = [row.samples.get((number, shape), "") for shape in sorted(shapes)]
    found = [_read_scores(file, _version(file), name, kind) for file in files]
    good = [scores for scores in found if scores is not None]
    if not good or len(good) < len(found) or any(scores[0] != good[0][0] for scores in good):
        return None
    return good[0][0], np.mean([scores[1] for scores in good], axis=0), good[0][2]


def _version(file: str) -> tuple[int, int] | None:
    """Tells a sidecar from the one that replaces it, as when a disturbed trial is repeated; None where there is none."""
    path = Path(file)
    try:
        status = (path.parent if is_packed(path) else path).stat()
    except (OSError, ValueError):
        return None
    return status.st_mtime_ns, status.st_size


@lru_cache(maxsize=4096)
def _read_scores(file: str, version: tuple[int, int] | None, name: str, kind: Kind) -> Scores | None:
    """A sidecar's scores, None where it is missing or not of this form: the board then has no interval, but it has a board."""
    if version is None:
        return None
    try:
        quality = read_samples(Path(file))["quality"]
        names = tuple(map(str, quality["names"]))
        scores, weights = (np.asarray(x, dtype=float) for x in (quality[kind][name], quality["weights"]))
    except (OSError, zstandard.ZstdError, ValueError, LookupError, TypeError, OverflowError):  # not there, or not of this form
        return None
    return (names, scores, weights) if scores.shape == weights.shape == (len(names),) and weights.sum() > 0 else None
