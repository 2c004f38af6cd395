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

    metrics = _array(table["metrics"])
    ends = np.asarray(metrics.offsets, dtype=np.int64)
    counts = np.diff(ends)
    rows = np.maximum(counts, 1)
    measured = np.repeat(counts > 0, rows)
    columns: dict[str, Any] = {}
    for name in TRIAL_COLUMNS:
        if name in NUMBERS:
            columns[name] = np.repeat(_numbers(_array(table[name])), rows)
        else:
            columns[name] = _repeated(_array(table[name]), rows, folder if name in ("file", "samples") else "")
    axes = _axes(columns["options"])
    values = metrics.values.slice(ends[0], ends[-1] - ends[0])
    measures = {name: _measure(values.field(name), measured) for name in METRIC_COLUMNS}
    return pd.DataFrame(columns | axes | measures, copy=False)


def _array(column: "pa.ChunkedArray") -> Any:
    """Its only chunk."""
    import pyarrow as pa

    return column.combine_chunks() if column.num_chunks else pa.array([], column.type)


def _numbers(column: "pa.Array") -> "NDArray[Any]":
    """32 bits where that is enough; floats where some are missing."""
    import numpy as np

    if column.null_count:
        return np.asarray(column.to_numpy(zero_copy_only=False), dtype=float)
    numbers: NDArray[Any] = column.to_numpy()
    small = np.iinfo(np.int32)
    fits = not len(numbers) or (numbers.min() >= small.min and numbers.max() <= small.max)
    return numbers.astype(np.int32) if fits else numbers


def _repeated(words: Any, rows: "NDArray[np.int64]", prefix: str) -> "pd.Categorical":
    import numpy as np

    found = _categorical(words, prefix)
    return type(found).from_codes(np.repeat(found.codes, rows), dtype=found.dtype, validate=False)


def _measure(values: Any, measured: "NDArray[np.bool_]") -> Any:
    """A metric's column, missing where a trial has none."""
    import numpy as np
    import pyarrow as pa

    if pa.types.is_dictionary(values.type):
        found = _categorical(values, "")
        codes = np.full(len(measured), -1, dtype=found.codes.dtype)
        codes[measured] = found.codes
        return type(found).from_codes(codes, dtype=found.dtype, validate=False)
    if measured.all():
        return _numbers(values) if pa.types.is_integer(values.type) else values.to_numpy(zero_copy_only=False)
    column = np.full(len(measured), np.nan)
    column[measured] = values.to_numpy(zero_copy_only=False)
    return column


def _categorical(words: Any, prefix: str) -> "pd.Categorical":
    """Its categories sorted: so are groups, and whatever is sorted by it."""
    import numpy as np
    import pandas as pd
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_dictionary(words.type):
        words = words.dictionary_encode()
    order = np.asarray(pc.sort_indices(words.dictionary))
    ranks = np.empty(len(order) + 1, dtype=np.min_scalar_type(-len(order) - 1))
    ranks[order] = np.arange(len(order))
    ranks[-1] = -1  # where a missing value's code, -1, points to
    codes = ranks[np.asarray(words.indices.fill_null(-1))]
    categories = [prefix + word for word in words.dictionary.take(pa.array(order)).to_pylist()]
    # Of the very type that pandas gives text: the dtype says `str` in pandas 3, and object before.
    return pd.Categorical.from_codes(codes, categories=pd.Index(categories, dtype=pd.Series(["x"]).dtype))


def _axes(options: "pd.Categorical") -> dict[str, Any]:
    """A column for each option axis. Records come from anyone: no axis takes the place of another column."""
    import numpy as np
    import pandas as pd

    found = [json.loads(text) for text in options.categories]
    names = dict.fromkeys(name for axes in found for name in axes if name not in {*TRIAL_COLUMNS, *METRIC_COLUMNS})
    columns = {}
    for name in names:
        values = pd.Series([axes.get(name) for axes in found], dtype=None)
        columns[name] = values.take(np.asarray(options.codes)).array
    return columns
