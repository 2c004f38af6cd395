"""What a page shows, as one JSON-able dict. All text in it is cleaned; what is not measured is null."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effbench.board.lengths import COSTS
from effbench.board.measures import Measure, measures_of
from effbench.board.verdict import AMOUNT, SPEED
from effbench.plugin.catalog import Catalog
from effbench.plugin.text import clean, form_of, missing
from effbench.store.machine import Machine

from ..reporters.machines import machine_sections
from .cells import Details, details_of, same
from .judged import claims_of, front_of

if TYPE_CHECKING:
    import pandas as pd

    from effbench.board.leaderboard import Leaderboard

_TITLES = {
    "train_speed": "Training speed",
    "prefill_speed": "Prompt speed (prefill)",
    "decode_speed": "Generation speed (decode)",
    "train_memory": "Training memory",
    "infer_memory": "Inference memory",
    "trainable": "Trained parameters",
    "checkpoint": "Checkpoint",
    "sparse": "Checkpoint without zeros",
    "bits": "Bits per weight",
    "delta": "Checkpoint of changes",
    "kv_cache": "KV cache",
    "loss": "Final loss",
}
"""Titles of the columns; a metric that the suite asks for has its own name."""
_NEWS = frozenset({"sparse", "bits", "kv_cache"})
"""Shown where some row differs from the baseline: otherwise they say what other columns say."""
_SCORES = {
    "bits_per_byte": "Bits needed per byte of held-out text that was never trained on: how well the model predicts it.",
    "perplexity": "2 to the power of the bits per token of held-out text: how many tokens the model hesitates between.",
    "top1_accuracy": "Share of held-out tokens that the model's first choice predicts.",
    "accuracy": "Share of held-out questions answered right.",
}
_EXACT = 2**53
"""Up to here a browser has every integer."""
_VALUE_PARTS = ("value", "ratio", "low", "high", "verdict")


def site_data(boards: "Sequence[Leaderboard]", catalog: Catalog) -> dict[str, Any]:
    """Of all boards: the boards, what they name (machines, metrics, techniques), and machines side by side."""
    names = _names(boards)
    found = [board_data(board, name) for board, name in zip(boards, names, strict=True)]
    shown = {metric for board in found for metric in board["metrics"]}
    machines = {board.machine: _machine(board) for board in boards}
    data = {
        "machines": machines,
        "metrics": {name: _metric(name, catalog) for name in sorted(shown)},
        "techniques": _techniques(boards, catalog),
        "boards": found,
        "side_by_side": [section._asdict() for section in machine_sections([*boards])],
    }
    cleaned: dict[str, Any] = tidy(data)
    return cleaned


def board_data(board: "Leaderboard", name: str) -> dict[str, Any]:
    """One board; tables are dicts of columns."""
    rows, quality = board.rows, board.settings.quality
    measures = [measure for measure in measures_of(board.settings.columns) if _says_something(board, measure)]
    wanted = dict.fromkeys([m.metric for m in measures] + [f"quality.{quality.metric}"])
    if board.scaling is not None:
        wanted |= dict.fromkeys(COSTS)
    details = details_of(board, tuple(wanted))
    return {
        "name": name,
        "ids": _unique(clean(str(label)) for label in rows["stack"]),
        **{key: getattr(board, key) for key in ("title", "machine", "suite", "model", "workload", "baseline", "ranked_by")},
        "rounds": board.rounds,
        "delta": board.delta,
        "world_size": board.world_size,
        "quality_metric": quality.metric,
        "quality_better": quality.direction,
        "floor": quality.floor,
        "notes": board.notes,
        "metrics": [*wanted],
        "measures": [_measure(measure) for measure in measures],
        "values": {m.key: {part: _column(rows, m.key, part) for part in _VALUE_PARTS} for m in measures},
        "rows": {key: rows[key].tolist() for key in ("stack", "rank", "techniques", "steps", "cells", "rounds", "status")},
        "quality": {
            "value": rows["quality"].tolist(),
            **{part: rows[f"quality_{part}"].tolist() for part in ("chance", "difference", "low", "high", "verdict")},
        },
        "folder": details.folder,
        "sessions": details.sessions,
        "common": details.common,
        "details": [_row_details(board, str(label), details) for label in rows["stack"]],
        "scaling": _table(board.scaling),
        "by_length": _table(board.by_length),
        "world_sizes": _table(board.world_sizes),
        "claims": claims_of(board),
        "front": front_of(board),
    }


def tidy(value: Any) -> Any:
    """Text of one line without control characters, numbers of six digits, null for what is missing or not finite."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {clean(str(key)): tidy(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [tidy(inner) for inner in value]
    if isinstance(value, float):
        return None if missing(value) else int(value) if value.is_integer() and abs(value) < _EXACT else float(f"{value:.6g}")
    return value.item() if hasattr(value, "item") else value  # numpy's own numbers


def _says_something(board: "Leaderboard", measure: Measure) -> bool:
    """Whether a column is worth its width; what a suite asks for always is."""
    if measure.key not in board.rows or all(map(missing, board.rows[measure.key])):
        return False
    if measure.key in board.extra_columns:
        return True
    words = set(board.rows[f"{measure.key}_verdict"].dropna()) - {"baseline", "SAME"}
    return bool(words) if measure.key in _NEWS else measure.key in _TITLES and measure.key != "loss"


def _measure(measure: Measure) -> dict[str, Any]:
    return {
        "key": measure.key,
        "metric": measure.metric,
        "title": _TITLES.get(measure.key, measure.metric),
        "form": form_of(measure.metric),
        "better": measure.better,
        "speed": measure.words is SPEED,
        "judged": measure.words is not AMOUNT,
    }


def _column(rows: "pd.DataFrame", key: str, part: str) -> list[Any]:
    name = key if part == "value" else f"{key}_{part}"
    return rows[name].tolist()


def _table(frame: "pd.DataFrame | None") -> dict[str, Any] | None:
    """Columns of a long table; of text, the words and which of them stands where, for there are few."""
    if frame is None:
        return None
    columns: dict[str, Any] = {str(name): frame[name].tolist() for name in frame}
    for name, column in columns.items():
        if all(isinstance(value, str) for value in column):
            words = sorted(set(column))
            columns[name] = {"words": words, "at": [words.index(value) for value in column]}
    return {"length": len(frame), "columns": {name: same(column) for name, column in columns.items()}}


def _row_details(board: "Leaderboard", label: str, details: Details) -> dict[str, Any]:
    row = next(row for row in board.table.rows if row.label == label)
    base = board.table.base.get(label)
    return {
        "options": row.options,
        "against": base.label if base is not None and base is not row else None,
        "leaks": row.leaks,
        "cells": [details.cells[cell] for cell in board.cells[label] if cell in details.cells],
    }


def _metric(name: str, catalog: Catalog) -> dict[str, Any]:
    """What it means, as whoever measures it says."""
    metrics = catalog.metrics()
    if name in metrics:
        return {key: value for key, value in asdict(metrics[name]).items() if key != "across_ranks"} | {"form": form_of(name)}
    score = name.removeprefix("quality.")
    said = _SCORES.get(score, "A score that the workload defines, on held-out samples." if score != name else "")
    return {"name": name, "unit": "", "direction": None, "definition": said, "form": form_of(name)}


def _techniques(boards: "Iterable[Leaderboard]", catalog: Catalog) -> dict[str, Any]:
    """Family and first sentence of those that are installed here; records may name others."""
    used = {name for board in boards for techniques in board.rows["techniques"] for name in str(techniques).split(" + ")}
    return {
        technique.name: {"family": technique.family, "says": (technique.__doc__ or "").strip().partition("\n")[0]}
        for technique in catalog.techniques
        if technique.name in used
    }


def _machine(board: "Leaderboard") -> dict[str, Any] | None:
    """As machine.json beside the records says; None where there is none."""
    file = Path(board.trials["file"].iloc[0]).parent.parent / "machine.json"
    try:
        return Machine.model_validate_json(file.read_text(encoding="utf-8")).model_dump(mode="json")
    except (OSError, ValueError):
        return None


def _names(boards: "Sequence[Leaderboard]") -> list[str]:
    """A name per board, unlike those of the other boards of its machine and suite."""
    titles = [(board.machine, board.suite, _slug(board.title.partition(": ")[2] or board.title)) for board in boards]
    return [
        title[2] + ("" if not (before := titles[:place].count(title)) else f"~{before + 1}")
        for place, title in enumerate(titles)
    ]


def _slug(text: str) -> str:
    return re.sub(r"[^\w.]+", "-", clean(text)).strip("-")[:80] or "board"


def _unique(names: Iterable[str]) -> list[str]:
    """The names, those that came before numbered."""
    found: dict[str, None] = {}
    for name in names:
        number = 1
        while (candidate := name if number == 1 else f"{name}~{number}") in found:
            number += 1
        found[candidate] = None
    return [*found]
