"""Formats of leaderboards."""

import json
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from effbench.plugin import Reporter, TextReporter, hookimpl
from effbench.plugin.text import csv_of, missing

from .claims import ClaimsCsvReporter, ClaimsJsonReporter, ClaimsMarkdownReporter, ClaimsTableReporter
from .latex import LatexReporter
from .layout import Section, TerminalReporter, in_markdown
from .lengths import length_legend, length_tables
from .machines import machine_sections
from .pareto import ParetoCsvReporter, ParetoJsonReporter, ParetoMarkdownReporter, ParetoTableReporter
from .parquet import ParquetReporter
from .pytest_benchmark import PytestBenchmarkReporter
from .tables import heading, legend, tables
from .world_sizes import world_size_legend, world_size_tables

if TYPE_CHECKING:
    import pandas as pd

    from effbench.board.leaderboard import Leaderboard

_INNER = frozenset({"settings", "table", "trials"})
"""What boards are made of, and reporters do not repeat."""
_WIDTH = 120
_IDENTITY = ["machine", "suite", "model", "workload", "title", "baseline"]


class TableReporter(TerminalReporter):
    """Tables for a terminal."""

    name: ClassVar = "table"
    file: ClassVar = "leaderboard.txt"

    def sections(self, boards: "list[Leaderboard]") -> list[Section]:
        """One per board, and one per set of boards that stand on several machines."""
        return [*map(_section, boards), *machine_sections(boards)]


class MarkdownReporter(TextReporter):
    """GitHub's Markdown."""

    name: ClassVar = "markdown"
    file: ClassVar = "LEADERBOARD.md"

    def render(self, boards: "list[Leaderboard]") -> str:
        """One section per board."""
        return in_markdown("Leaderboard", [*map(_section, boards), *machine_sections(boards)])


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


class MachinesJsonReporter(TextReporter):
    """What several machines measured alike: a list of tables, each with its notes and a row per stack and machine."""

    name: ClassVar = "machines-json"
    file: ClassVar = "machines.json"

    def render(self, boards: "list[Leaderboard]") -> str:
        """Missing values are null; an empty list for one machine."""
        from effbench.board.machines import side_by_side

        found = [vars(table) | {"rows": _plain_rows(table.rows)} for table in side_by_side(boards)]
        return json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False)

    def files(self, boards: "list[Leaderboard]") -> dict[str, bytes]:
        """None for one machine."""
        return super().files(boards) if len({board.machine for board in boards}) > 1 else {}


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
    return csv_of(pd.DataFrame(entries, columns=[*names]))


def _plain_board(board: "Leaderboard") -> dict[str, Any]:
    frames = {"rows": board.rows, "scaling": board.scaling, "by_length": board.by_length, "world_sizes": board.world_sizes}
    fields = {name: value for name, value in vars(board).items() if name not in frames and name not in _INNER}
    plain = {name: None if frame is None else _plain_rows(frame) for name, frame in frames.items()}
    return fields | {"rounds": list(board.rounds)} | plain


def _plain_rows(frame: "pd.DataFrame") -> list[dict[str, Any]]:
    return [{str(key): None if missing(value) else value for key, value in row.items()} for row in frame.to_dict("records")]


def _legends(board: "Leaderboard") -> str:
    return " ".join(filter(None, [legend(board), length_legend(board), world_size_legend(board)]))


def _section(board: "Leaderboard") -> Section:
    shown = tables(board) + length_tables(board) + world_size_tables(board)
    return Section(heading(board), shown, board.notes, _legends(board))


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
        MachinesJsonReporter,
        ParetoTableReporter,
        ParetoMarkdownReporter,
        ParetoCsvReporter,
        ParetoJsonReporter,
        PytestBenchmarkReporter,
        ClaimsTableReporter,
        ClaimsMarkdownReporter,
        ClaimsCsvReporter,
        ClaimsJsonReporter,
        LatexReporter,
        ParquetReporter,
    ):
        register(reporter)
