"""Records as one tidy DataFrame: a row per trial and metric. Everything else is a view of it."""

import hashlib
import json
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effbench.plugin.cell import Cell, canonical_json
from effbench.store.record import Record
from effbench.store.store import read_records

if TYPE_CHECKING:
    import pandas as pd

TRIAL_COLUMNS = (
    "machine", "suite", "session", "round", "cell_id", "stack", "techniques", "model", "workload",
    "seq_len", "batch_size", "paired_batch", "world_size", "dtype", "device", "options", "variant", "settings", "steps",
    "threads", "scaling", "parallel", "applied", "serial",
    "status", "error", "dirty", "leaks", "train_phase", "infer_phase",
    "fingerprint", "methodology", "weights", "data", "git", "file", "samples",
)  # fmt: skip
"""What is the same in every row of a trial; the values of option axes come on top, a column each (`lora.rank`)."""
METRIC_COLUMNS = ("metric", "value", "low", "high", "n", "unit")


def load(path: str | Path) -> "pd.DataFrame":
    """All trials below a results folder. Files that are no trial record are warned about by name, and never counted."""
    found = read_records(Path(path))
    for problem in found.problems:
        warnings.warn(problem, stacklevel=2)
    frame = tidy(found.records)
    frame.attrs["problems"] = found.problems
    return frame


def tidy(records: Iterable[tuple[Path, Record]]) -> "pd.DataFrame":
    """One row per trial and metric; a trial that measured nothing (oom, skipped, …) is one row without a metric."""
    import pandas as pd

    rows: list[dict[str, Any]] = []
    axes: dict[str, None] = {}
    for file, record in records:
        trial = _trial(file, record)
        axes |= dict.fromkeys(record.cell.option_axes)
        metrics = list(_metrics(record)) or [{}]
        rows += [trial | metric for metric in metrics]
    frame = pd.DataFrame(rows, columns=[*TRIAL_COLUMNS, *axes, *METRIC_COLUMNS])
    return frame.astype({"value": float, "low": float, "high": float})


def _trial(file: Path, record: Record) -> dict[str, Any]:
    cell, fingerprint = record.cell, record.fingerprint
    return {
        "machine": record.machine,
        "session": record.session,
        "round": record.round,
        "cell_id": record.cell_id,
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
        "steps": cell.steps if record.phases.get("train") == "ok" else None,
        "status": record.status,
        "error": record.headline,
        "dirty": record.dirty,
        "leaks": record.leaks,
        "train_phase": record.phases.get("train"),
        "infer_phase": record.phases.get("infer"),
        "fingerprint": _hash(fingerprint.model_dump(mode="json")),
        "methodology": fingerprint.methodology,
        "weights": fingerprint.weights,
        "data": fingerprint.data,
        "git": record.git,
        "file": str(file),
        "samples": _sidecar(file, record.samples),
        **cell.option_axes,
    }


def _metrics(record: Record) -> Iterator[dict[str, Any]]:
    for name, summary in record.metrics.items():
        yield {"metric": name, "value": summary.median} | summary.model_dump(include={"low", "high", "n", "unit"})
    if quality := record.quality:
        kinds = {
            "quality": quality.scores,
            "quality_before": quality.before,
            "quality_chance": quality.chance,
            "quality_teacher": quality.teacher,
        }
        for kind, scores in kinds.items():
            for name, score in scores.items():
                yield {"metric": f"{kind}.{name}", "value": score, "n": quality.n, "unit": ""}


def _settings(cell: Cell) -> str:
    """What all stacks of a suite share beside their shape, and what numbers depend on."""
    shared = cell.model_dump(mode="json", include={"threads", "allocator", "steps", "new_tokens", "quality_documents"})
    rule = _hash(cell.sampling.model_dump(mode="json"))[:4]
    weak = ["weak scaling"] if cell.scaling == "weak" else []
    return ", ".join([f"{name} {value}" for name, value in shared.items()] + [f"sampling {rule}", *weak])


def _sidecar(file: Path, name: str | None) -> str | None:
    # A record may come from anyone: only a file that lies beside it is ever opened.
    return str(file.parent / name) if name and "/" not in name and "\\" not in name else None


def _hash(value: object) -> str:
    return hashlib.sha256(canonical_json(json.loads(json.dumps(value))).encode()).hexdigest()[:8]
