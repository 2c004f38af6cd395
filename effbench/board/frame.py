"""Records as one tidy DataFrame: a row per trial and metric. Everything else is a view of it."""

import json
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effbench.store.columns import METRIC_COLUMNS, NUMBERS, TRIAL_COLUMNS, Columns
from effbench.store.index import read_trials
from effbench.store.record import Record

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow as pa
    from numpy.typing import NDArray

__all__ = ["METRIC_COLUMNS", "TRIAL_COLUMNS", "load", "tidy"]


def load(path: str | Path) -> "pd.DataFrame":
    """All trials below a results folder. Files that are no trial record are warned about by name, and never counted.

    Columns: TRIAL_COLUMNS, which are the same in every row of a trial; the values of option axes, a column each
    (`lora.rank`); METRIC_COLUMNS. Text is categorical, its categories sorted; what is missing is NaN.
    """
    found = read_trials(Path(path))
    for problem in found.problems:
        warnings.warn(problem, stacklevel=2)
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    frame = _frame(found.table, str(folder / "x")[:-1])
    frame.attrs["problems"] = found.problems
    return frame


def tidy(records: Iterable[tuple[Path, Record]]) -> "pd.DataFrame":
    """One row per trial and metric; a trial that measured nothing (oom, skipped, …) is one row without a metric."""
    columns = Columns()
    for file, record in records:
        columns.add(str(file), record)
    return _frame(columns.table(), "")


def _frame(table: "pa.Table", folder: str) -> "pd.DataFrame":
    """A trial's columns repeated for each of its metrics, or once where it has none."""
    import numpy as np
    import pandas as pd

    metrics = table["metrics"].chunks
    counts = np.concatenate([np.empty(0, np.int64), *(np.diff(np.asarray(chunk.offsets)) for chunk in metrics)])
    rows = np.maximum(counts, 1)
    measured = np.repeat(counts > 0, rows)
    columns: dict[str, Any] = {}
    for name in TRIAL_COLUMNS:
        if name in NUMBERS:
            columns[name] = np.repeat(_numbers(table[name].chunks), rows)
        else:
            columns[name] = _repeated(table[name].chunks, rows, folder if name in ("file", "samples") else "")
    axes = _axes(columns["options"])
    values = [chunk.flatten() for chunk in metrics]
    measures = {name: _measure([part.field(name) for part in values], measured) for name in METRIC_COLUMNS}
    return pd.DataFrame(columns | axes | measures, copy=False)


def _numbers(parts: "list[pa.Array]") -> "NDArray[Any]":
    """32 bits where that is enough; floats where some are missing."""
    import numpy as np

    if any(part.null_count for part in parts):
        return _floats(parts)
    numbers = np.concatenate([np.empty(0, np.int64), *(part.to_numpy() for part in parts)])
    small = np.iinfo(np.int32)
    fits = not len(numbers) or (numbers.min() >= small.min and numbers.max() <= small.max)
    return numbers.astype(np.int32) if fits else numbers


def _floats(parts: "list[pa.Array]") -> "NDArray[np.float64]":
    """What is missing is NaN."""
    import numpy as np

    found = [part.to_numpy(zero_copy_only=False) for part in parts]
    return np.concatenate(found, dtype=np.float64) if found else np.empty(0)


def _repeated(parts: "list[pa.Array]", rows: "NDArray[np.int64]", prefix: str) -> "pd.Categorical":
    import numpy as np

    found = _categorical(parts, prefix)
    return type(found).from_codes(np.repeat(found.codes, rows), dtype=found.dtype, validate=False)


def _measure(parts: "list[Any]", measured: "NDArray[np.bool_]") -> Any:
    """A metric's column, missing where a trial has none."""
    import numpy as np
    import pyarrow as pa

    if parts and pa.types.is_dictionary(parts[0].type):
        found = _categorical(parts, "")
        if measured.all():
            return found
        codes = np.full(len(measured), -1, dtype=found.codes.dtype)
        codes[measured] = found.codes
        return type(found).from_codes(codes, dtype=found.dtype, validate=False)
    if measured.all():
        return _numbers(parts) if parts and pa.types.is_integer(parts[0].type) else _floats(parts)
    column = np.full(len(measured), np.nan)
    column[measured] = _floats(parts)
    return column


def _categorical(parts: "list[Any]", prefix: str) -> "pd.Categorical":
    """Its categories sorted: so are groups, and whatever is sorted by it. All parts have the same dictionary, or none."""
    import numpy as np
    import pandas as pd
    import pyarrow as pa
    import pyarrow.compute as pc

    if parts and not pa.types.is_dictionary(parts[0].type):
        parts = pa.chunked_array(parts).dictionary_encode().chunks
    words = parts[0].dictionary if parts else pa.array([], pa.string())
    order = pc.sort_indices(words)
    ranks = np.empty(len(order) + 1, dtype=np.min_scalar_type(-len(order) - 1))
    ranks[np.asarray(order)] = np.arange(len(order))
    ranks[-1] = -1  # where a missing value's code, -1, points to
    codes = [ranks[np.asarray(part.indices.fill_null(-1))] for part in parts]
    known = words.take(order)
    categories = pc.binary_join_element_wise(pa.scalar(prefix), known, "") if prefix else known
    # Of the very type that pandas gives text: the dtype says `str` in pandas 3, and object before.
    index = pd.Index(categories.to_pandas().astype(pd.Series(["x"]).dtype))
    return pd.Categorical.from_codes(np.concatenate(codes) if codes else [], categories=index, validate=False)


def _axes(options: "pd.Categorical") -> dict[str, Any]:
    """A column for each option axis. Records come from anyone: no axis takes the place of another column."""
    import numpy as np
    import pandas as pd

    found = [json.loads(text) for text in options.categories]
    names = dict.fromkeys(name for axes in found for name in axes if name not in {*TRIAL_COLUMNS, *METRIC_COLUMNS})
    columns = {}
    for name in names:
        values = pd.Series([axes.get(name) for axes in found], dtype=None)
        columns[name] = values.array.take(np.asarray(options.codes))
    return columns
