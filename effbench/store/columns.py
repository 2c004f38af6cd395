"""Records as columns: an Arrow table with one row per trial, from which boards are made, and which the index and packs keep."""

import hashlib
import json
from array import array
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

from effbench.plugin.cell import Cell, canonical_json
from effbench.store.record import Fingerprint, Record

if TYPE_CHECKING:
    import pyarrow as pa

LAYOUT = "1"
"""Changes with the columns, and with how anything in them is derived."""
TRIAL_COLUMNS = (
    "machine", "suite", "session", "round", "cell_id", "stack", "techniques", "model", "workload",
    "seq_len", "batch_size", "paired_batch", "world_size", "dtype", "device", "options", "variant", "settings", "steps",
    "threads", "scaling", "parallel", "applied", "serial",
    "status", "error", "dirty", "leaks", "train_phase", "infer_phase",
    "fingerprint", "methodology", "weights", "data", "git", "file", "samples",
)  # fmt: skip
METRIC_COLUMNS = ("metric", "value", "low", "high", "n", "unit")
NUMBERS = frozenset({"round", "seq_len", "batch_size", "paired_batch", "world_size", "steps", "threads"})
"""Columns of integers; all others are text."""
_OPTIONAL = frozenset({"steps", "dirty", "leaks", "train_phase", "infer_phase", "git", "samples"})
DISTINCT = frozenset({"file", "samples"})
"""Text that hardly repeats, so that no dictionary is kept of it."""
_LARGEST = 2**63 - 1


@cache
def schema() -> "pa.Schema":
    """The columns' types: TRIAL_COLUMNS, and `metrics`, a list of METRIC_COLUMNS."""
    import pyarrow as pa

    word = pa.dictionary(pa.int32(), pa.string())

    def type_of(name: str) -> pa.DataType:
        return pa.int64() if name in NUMBERS else pa.string() if name in DISTINCT else word

    types = (word, pa.float64(), pa.float64(), pa.float64(), pa.int64(), word)
    metrics = pa.list_(pa.field("element", pa.struct(list(zip(METRIC_COLUMNS, types, strict=True)))))
    fields = [pa.field(name, type_of(name), nullable=name in _OPTIONAL) for name in TRIAL_COLUMNS]
    return pa.schema([*fields, pa.field("metrics", metrics, nullable=False)], {"layout": LAYOUT})


class Columns:
    """Takes record after record, and keeps no more of each than its row."""

    def __init__(self) -> None:
        self._rows: list[tuple[Any, ...]] = []
        self._metrics = _Metrics()
        # Cells repeat over rounds, and the hashes of one cost as much as the rest of a record. They are told apart by all that
        # is in them: an id may be wrong.
        self._cells: dict[str, dict[str, Any]] = {}
        self._fingerprints: dict[str, dict[str, Any]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, file: str, record: Record) -> None:
        """One more row, of the record in `file`; `samples` lies beside that. ValueError where a number is none of a trial."""
        try:
            trial = self._trial(file, record)
            numbers = [value for name in NUMBERS if (value := trial[name]) is not None]
            if any(abs(number) > _LARGEST for number in numbers):
                raise OverflowError
            self._metrics.add(record)
        except ArithmeticError as error:  # beyond 64 bits, or a batch over no ranks
            raise ValueError("a number that no trial has") from error
        self._rows.append(tuple(trial[name] for name in TRIAL_COLUMNS))

    def table(self) -> "pa.Table":
        """All rows, in the order they were added."""
        import pyarrow as pa

        columns = []
        for position, name in enumerate(TRIAL_COLUMNS):
            values = pa.array((row[position] for row in self._rows), pa.int64() if name in NUMBERS else pa.string())
            columns.append(values if name in NUMBERS | DISTINCT else values.dictionary_encode())
        return pa.Table.from_arrays([*columns, self._metrics.array()], schema=schema())

    def _trial(self, file: str, record: Record) -> dict[str, Any]:
        cell = record.cell.model_dump_json()
        if (of_cell := self._cells.get(cell)) is None:
            of_cell = self._cells[cell] = _of_cell(record.cell)
        fingerprint = record.fingerprint.model_dump_json()
        if (of_fingerprint := self._fingerprints.get(fingerprint)) is None:
            of_fingerprint = self._fingerprints[fingerprint] = _of_fingerprint(record.fingerprint)
        return {
            **of_cell,
            **of_fingerprint,
            "machine": record.machine,
            "session": record.session,
            "round": record.round,
            "cell_id": record.cell_id,
            "steps": record.cell.steps if record.phases.get("train") == "ok" else None,
            "status": record.status,
            "error": record.headline,
            "dirty": record.dirty,
            "leaks": record.leaks,
            "git": record.git,
            "train_phase": record.phases.get("train"),
            "infer_phase": record.phases.get("infer"),
            "file": file,
            "samples": _beside(file, record.samples) if record.samples and is_plain(record.samples) else None,
        }


class _Metrics:
    """The list column."""

    def __init__(self) -> None:
        self._ends = array("q", [0])
        self._names, self._units = _Words(), _Words()
        self._values, self._lows, self._highs = array("d"), array("d"), array("d")
        self._counts = array("q")

    def add(self, record: Record) -> None:
        found = list(_metrics(record))
        counts = array("q", [n for *_, n, _ in found])  # first, for it may overflow
        for name, value, low, high, _, unit in found:
            self._names.add(name)
            self._values.append(value)
            self._lows.append(_MISSING if low is None else low)
            self._highs.append(_MISSING if high is None else high)
            self._units.add(unit)
        self._counts.extend(counts)
        self._ends.append(len(self._values))

    def array(self) -> "pa.ListArray":
        import numpy as np
        import pyarrow as pa

        lows, highs = (pa.array(np.frombuffer(ends), from_pandas=True) for ends in (self._lows, self._highs))
        values, counts = np.frombuffer(self._values), np.frombuffer(self._counts, dtype=np.int64)
        parts = [self._names.array(), pa.array(values), lows, highs, pa.array(counts), self._units.array()]
        ends = pa.array(np.frombuffer(self._ends, dtype=np.int64), pa.int32())
        entries = pa.StructArray.from_arrays(parts, METRIC_COLUMNS)
        return pa.ListArray.from_arrays(ends, entries, type=schema().field("metrics").type)


class _Words:
    """Text of few different values."""

    def __init__(self) -> None:
        self._codes, self._numbers = array("i"), dict[str, int]()

    def add(self, word: str) -> None:
        self._codes.append(self._numbers.setdefault(word, len(self._numbers)))

    def array(self) -> "pa.DictionaryArray":
        import numpy as np
        import pyarrow as pa

        codes = pa.array(np.frombuffer(self._codes, dtype=np.int32))
        return pa.DictionaryArray.from_arrays(codes, pa.array(list(self._numbers), pa.string()))


_MISSING = float("nan")


def is_plain(name: str) -> bool:
    """Whether it names a file in the same folder. Records may come from anyone: nothing elsewhere is ever opened for them."""
    return bool(name) and not name.startswith(".") and not any(character in name for character in "/\\\0")


def _beside(file: str, name: str) -> str:
    folder, separator, _ = file.rpartition("/")
    return f"{folder}{separator}{name}"


def _of_cell(cell: Cell) -> dict[str, Any]:
    return {
        "stack": cell.stack,
        "techniques": " + ".join(name for name, _ in cell.techniques) or "untouched",
        **cell.shape,
        "paired_batch": cell.paired_batch,
        "options": canonical_json(cell.option_axes),
        "variant": _hash([cell.techniques, cell.lr]),
        "settings": _settings(cell),
        "threads": cell.threads,
        "scaling": cell.scaling,
        "parallel": canonical_json(cell.parallel),
        "applied": _hash(cell.techniques),
        "serial": _hash(cell.serial),
    }


def _of_fingerprint(fingerprint: Fingerprint) -> dict[str, Any]:
    return {
        "fingerprint": _hash(fingerprint.model_dump(mode="json")),
        "methodology": fingerprint.methodology,
        "weights": fingerprint.weights,
        "data": fingerprint.data,
    }


def _metrics(record: Record) -> Iterator[tuple[str, float, float | None, float | None, int, str]]:
    """As METRIC_COLUMNS."""
    for name, summary in record.metrics.items():
        yield name, summary.median, summary.low, summary.high, summary.n, summary.unit
    if quality := record.quality:
        kinds = {
            "quality": quality.scores,
            "quality_before": quality.before,
            "quality_chance": quality.chance,
            "quality_teacher": quality.teacher,
        }
        for kind, scores in kinds.items():
            for name, score in scores.items():
                yield f"{kind}.{name}", score, None, None, quality.n, ""


def _settings(cell: Cell) -> str:
    """What all stacks of a suite share beside their shape, and what numbers depend on."""
    shared = cell.model_dump(mode="json", include={"threads", "allocator", "steps", "new_tokens", "quality_documents"})
    rule = _hash(cell.sampling.model_dump(mode="json"))[:4]
    weak = ["weak scaling"] if cell.scaling == "weak" else []
    return ", ".join([f"{name} {value}" for name, value in shared.items()] + [f"sampling {rule}", *weak])


def _hash(value: object) -> str:
    return hashlib.sha256(canonical_json(json.loads(json.dumps(value))).encode()).hexdigest()[:8]
