"""Parquet: the leaderboards' rows and the trials behind them, with their types."""

from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any, ClassVar

from effbench.plugin import Reporter
from effbench.plugin.cell import canonical_json
from effbench.plugin.mark import mark_of
from effbench.plugin.text import missing

if TYPE_CHECKING:
    import pandas as pd

    from effbench.board.leaderboard import Leaderboard

_IDENTITY = ("machine", "suite", "model", "workload", "title", "baseline")
_TEXT = frozenset({*_IDENTITY, "rank", "stack", "techniques", "cells", "status"})
_COUNTS = frozenset({"steps", "rounds"})
_NOT_PUBLISHED = ["file", "samples", "reference", "first"]
"""Where records lie on the machine that publishes, and marks of how boards are made."""


class ParquetReporter(Reporter):
    """The rows of all boards, and their trials as tidy tables."""

    name: ClassVar = "parquet"

    def files(self, boards: "list[Leaderboard]") -> dict[str, bytes]:
        """`leaderboard.parquet` and `trials.parquet`."""
        if not boards:
            return {}
        return {"leaderboard.parquet": _parquet(rows_frame(boards)), "trials.parquet": _parquet(trials_frame(boards))}


def rows_frame(boards: "Sequence[Leaderboard]") -> "pd.DataFrame":
    """The rows of all boards, as in the CSV: texts, counts (nullable integers) and floats; missing is null."""
    import pandas as pd

    entries = [
        {name: getattr(board, name) for name in _IDENTITY} | {str(key): value for key, value in row.items()}
        for board in boards
        for row in board.rows.to_dict("records")
    ]
    names = dict.fromkeys([*_IDENTITY, *(name for entry in entries for name in entry)])
    return pd.DataFrame({name: _column(name, [entry.get(name) for entry in entries]) for name in names})


def _column(name: str, values: Sequence[Any]) -> "pd.Series[Any]":
    import pandas as pd

    present = [None if missing(value) else value for value in values]
    if name in _TEXT or name.endswith("_verdict"):
        return pd.Series(present, dtype="string")
    return pd.Series(present, dtype="Int64" if name in _COUNTS else "Float64")


def trials_frame(boards: "Sequence[Leaderboard]") -> "pd.DataFrame":
    """A row per trial and metric of all boards, each once, whatever number of boards it stands on."""
    import pandas as pd

    parts = [board.trials.drop(columns=_NOT_PUBLISHED, errors="ignore").astype(object) for board in boards]
    frame = pd.concat(parts, ignore_index=True)
    frame = frame.drop_duplicates(["machine", "cell_id", "session", "round", "metric"], ignore_index=True)
    return pd.DataFrame({str(name): _typed(frame[name]) for name in frame})


def _typed(column: "pd.Series[Any]") -> "pd.Series[Any]":
    """The narrowest type that holds all; what is of several types, as options may be, is JSON text."""
    import pandas as pd

    values = [None if absent else value for value, absent in zip(column, column.isna(), strict=True)]
    kinds = {type(value) for value in values if value is not None}
    for dtype, allowed in (("boolean", {bool}), ("Int64", {int}), ("Float64", {int, float}), ("string", {str})):
        if kinds and kinds <= allowed:
            return pd.Series(values, dtype=dtype)
    return pd.Series([None if value is None else canonical_json(value) for value in values], dtype="string")


def _parquet(frame: "pd.DataFrame") -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pandas(frame, preserve_index=False)
    mark = mark_of(frame.to_csv(index=False))
    out = BytesIO()
    pq.write_table(table.replace_schema_metadata({**(table.schema.metadata or {}), b"effbench": mark.encode()}), out)
    return out.getvalue()
