"""Formats of leaderboards."""

import json
import shutil
from collections.abc import Callable, Iterable
from io import StringIO
from typing import TYPE_CHECKING, Any, ClassVar

from effbench.plugin import Reporter, TextReporter, hookimpl

from .latex import LatexReporter
from .lengths import length_legend, length_tables
from .parquet import ParquetReporter
from .tables import Table, heading, legend, tables
from .text import clean, missing
from .world_sizes import world_size_legend, world_size_tables

if TYPE_CHECKING:
    import pandas as pd

    from effbench.board.leaderboard import Leaderboard

_INNER = frozenset({"settings", "table", "trials"})
"""What boards are made of, and reporters do not repeat."""
_WIDTH = 120
_IDENTITY = ["machine", "suite", "model", "workload", "title", "baseline"]


class TableReporter(TextReporter):
    """Tables for a terminal."""

    name: ClassVar = "table"
    file: ClassVar = "leaderboard.txt"

    def render(self, boards: "list[Leaderboard]") -> str:
        """As wide as the terminal, 120 columns where there is none."""
        return self._rendered(boards, shutil.get_terminal_size((_WIDTH, 24)).columns)

    def files(self, boards: "list[Leaderboard]") -> dict[str, bytes]:
        """Of one width, whatever terminal it is written from."""
        return {self.file: self._rendered(boards, _WIDTH).encode()}

    def _rendered(self, boards: "list[Leaderboard]", width: int) -> str:
        from rich import box
        from rich.console import Console
        from rich.table import Table as Grid
        from rich.text import Text

        out = StringIO()
        # Text objects are never read as markup, so names such as "[red]" or ":smile:" stay what they are.
        console = Console(file=out, width=width, highlight=False, markup=False, emoji=False)
        for board in boards:
            for line in heading(board):
                console.print(Text(line))
            for titles, cells in _tables(board):
                grid = Grid(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
                for title in titles:
                    grid.add_column(Text(title), overflow="fold")
                for row in cells:
                    grid.add_row(*map(Text, row))
                console.print(grid)
            for note in board.notes:
                console.print(Text(f"note: {clean(note)}"))
            console.print(Text(_legends(board)))
            console.print()
        return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


class MarkdownReporter(TextReporter):
    """GitHub's Markdown."""

    name: ClassVar = "markdown"
    file: ClassVar = "LEADERBOARD.md"

    def render(self, boards: "list[Leaderboard]") -> str:
        """One section per board."""
        lines = ["# Leaderboard", ""]
        for board in boards:
            title, *details = map(_markdown, heading(board))
            lines += [f"## {title}", "", *(f"{detail}  " for detail in details), ""]
            for titles, cells in _tables(board):
                rows = [titles, ["---"] * len(titles), *cells]
                lines += [_markdown_row(row) for row in rows] + [""]
            lines += [f"- {_markdown(clean(note))}" for note in board.notes]
            lines += ["", _legends(board), ""]
        return "\n".join(lines)


class CsvReporter(TextReporter):
    """All numbers of all boards in one table."""

    name: ClassVar = "csv"
    file: ClassVar = "leaderboard.csv"

    def render(self, boards: "list[Leaderboard]") -> str:
        """Identifying columns first; an empty field is a missing value."""
        from effbench.board.table import columns

        return _csv(columns(), [(board, board.rows) for board in boards])


class ScalingCsvReporter(TextReporter):
    """How cost grows with the length, one line per stack and metric."""

    name: ClassVar = "scaling-csv"
    file: ClassVar = "scaling.csv"

    def render(self, boards: "list[Leaderboard]") -> str:
        """No lines but the header for boards of fewer than three lengths."""
        from effbench.board.scaling import SCALING_COLUMNS

        return _csv(SCALING_COLUMNS, [(board, board.scaling) for board in boards])

    def files(self, boards: "list[Leaderboard]") -> dict[str, bytes]:
        """None where no board has them."""
        return super().files(boards) if any(board.scaling is not None for board in boards) else {}


class LengthsCsvReporter(TextReporter):
    """Costs and their ratios to the baseline, one line per stack, metric and length."""

    name: ClassVar = "lengths-csv"
    file: ClassVar = "by_length.csv"

    def render(self, boards: "list[Leaderboard]") -> str:
        """No lines but the header for boards of fewer than three lengths."""
        from effbench.board.scaling import LENGTH_COLUMNS

        return _csv(LENGTH_COLUMNS, [(board, board.by_length) for board in boards])

    def files(self, boards: "list[Leaderboard]") -> dict[str, bytes]:
        """None where no board has them."""
        return super().files(boards) if any(board.by_length is not None for board in boards) else {}


class WorldSizesCsvReporter(TextReporter):
    """Parallel stacks at every world size, one line per stack and world size."""

    name: ClassVar = "world-sizes-csv"
    file: ClassVar = "world_sizes.csv"

    def render(self, boards: "list[Leaderboard]") -> str:
        """No lines but the header where a single rank alone was measured."""
        from effbench.board.world_sizes import columns

        return _csv(columns(), [(board, board.world_sizes) for board in boards])

    def files(self, boards: "list[Leaderboard]") -> dict[str, bytes]:
        """None where no board has them."""
        return super().files(boards) if any(board.world_sizes is not None for board in boards) else {}


class JsonReporter(TextReporter):
    """A list of boards, each with its notes, its rows and, where it has them, `scaling`, `by_length` and `world_sizes`."""

    name: ClassVar = "json"
    file: ClassVar = "leaderboard.json"

    def render(self, boards: "list[Leaderboard]") -> str:
        """Missing values are null."""
        return json.dumps([_plain_board(board) for board in boards], indent=2, ensure_ascii=False, allow_nan=False)


def _csv(columns: Iterable[str], parts: "list[tuple[Leaderboard, pd.DataFrame | None]]") -> str:
    """These columns, and behind them what some board has besides."""
    import pandas as pd

    entries = [
        {name: getattr(board, name) for name in _IDENTITY} | row
        for board, frame in parts
        if frame is not None
        for row in _plain_rows(frame)
    ]
    names = dict.fromkeys(name for entry in [dict.fromkeys([*_IDENTITY, *columns]), *entries] for name in entry)
    return str(pd.DataFrame(entries, columns=[*names]).to_csv(index=False))


def _plain_board(board: "Leaderboard") -> dict[str, Any]:
    frames = {"rows": board.rows, "scaling": board.scaling, "by_length": board.by_length, "world_sizes": board.world_sizes}
    fields = {name: value for name, value in vars(board).items() if name not in frames and name not in _INNER}
    plain = {name: None if frame is None else _plain_rows(frame) for name, frame in frames.items()}
    return fields | {"rounds": list(board.rounds)} | plain


def _plain_rows(frame: "pd.DataFrame") -> list[dict[str, Any]]:
    return [{str(key): None if missing(value) else value for key, value in row.items()} for row in frame.to_dict("records")]


def _legends(board: "Leaderboard") -> str:
    return " ".join(filter(None, [legend(board), length_legend(board), world_size_legend(board)]))


def _tables(board: "Leaderboard") -> list[Table]:
    return tables(board) + length_tables(board) + world_size_tables(board)


def _markdown(text: str) -> str:
    for character in "\\`|[]*":
        text = text.replace(character, f"\\{character}")
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _markdown_row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell if cell == "---" else _markdown(cell.replace("\n", " ")) for cell in cells) + " |"


@hookimpl
def register_reporters(register: "Callable[[type[Reporter]], None]") -> None:
    """Register the standard formats."""
    for reporter in (
        TableReporter,
        MarkdownReporter,
        CsvReporter,
        ScalingCsvReporter,
        LengthsCsvReporter,
        WorldSizesCsvReporter,
        JsonReporter,
        LatexReporter,
        ParquetReporter,
    ):
        register(reporter)
