"""Pareto fronts for a terminal, in Markdown, CSV and JSON."""

import json
from typing import TYPE_CHECKING, ClassVar

from effbench.plugin import InputError, TextReporter
from effbench.plugin.text import MISSING, clean, csv_of, human_of, missing, number, plain

from .layout import Section, TerminalReporter, in_markdown
from .tables import Column, Entry, laid_out

if TYPE_CHECKING:
    from effbench.board.leaderboard import Leaderboard
    from effbench.board.pareto import Front

_LEGEND = (
    "On the front: no row is at least as good on every metric and better on one, by the estimates. Probability: of being on "
    "the front, from draws of all rows' means that keep rounds and documents paired; whatever the number of rows. Knee: of "
    "the front, the nearest to the best of every metric. Dominated by: rows that the rounds are sure of; (estimate): the "
    f"estimates alone say so. {MISSING}: too few rounds to tell."
)


class ParetoReporter(TextReporter):
    """Fronts: what all forms of them share."""

    def files(self, boards: "list[Leaderboard]") -> dict[str, bytes]:
        """None where no board has both metrics of its front."""
        try:
            return super().files(boards) if boards else {}
        except InputError:
            return {}


class ParetoTableReporter(ParetoReporter, TerminalReporter):
    """Fronts for a terminal."""

    name: ClassVar = "pareto-table"
    file: ClassVar = "pareto.txt"

    def sections(self, boards: "list[Leaderboard]") -> list[Section]:
        """One per front."""
        return [*map(_section, _fronts(boards))]


class ParetoMarkdownReporter(ParetoReporter):
    """Fronts in GitHub's Markdown."""

    name: ClassVar = "pareto-markdown"
    file: ClassVar = "PARETO.md"

    def render(self, boards: "list[Leaderboard]") -> str:
        """A section for each board."""
        return in_markdown("Pareto fronts", map(_section, _fronts(boards)))


class ParetoCsvReporter(ParetoReporter):
    """One line per row of a front."""

    name: ClassVar = "pareto-csv"
    file: ClassVar = "pareto.csv"

    def render(self, boards: "list[Leaderboard]") -> str:
        """A column for each metric; an empty field is a missing value."""
        import pandas as pd

        fronts = _fronts(boards)
        entries = [_identity(front) | row for front in fronts for row in _rows(front)]
        columns = dict.fromkeys(name for front in fronts for name in (*_identity(front), *map(str, front.rows.columns)))
        return csv_of(pd.DataFrame(entries, columns=[*columns]))


class ParetoJsonReporter(ParetoReporter):
    """A list of fronts, each with its rows, the rows left out and why, and its notes."""

    name: ClassVar = "pareto-json"
    file: ClassVar = "pareto.json"

    def render(self, boards: "list[Leaderboard]") -> str:
        """Missing values are null."""
        return json.dumps([_plain_front(f) for f in _fronts(boards)], indent=2, ensure_ascii=False, allow_nan=False)


def _fronts(boards: "list[Leaderboard]") -> "list[Front]":
    from effbench.board.pareto import fronts_of

    return fronts_of(boards)


def _section(front: "Front") -> Section:
    board = front.board
    directions = ", ".join(f"{metric} ({better} is better)" for metric, better in zip(front.metrics, front.better, strict=True))
    heading = [
        board.title,
        f"machine {board.machine} · suite {board.suite} · model {board.model} · workload {board.workload}",
        f"front over {directions or MISSING} · knee {front.knee or MISSING}",
    ]
    names = [Column("stack", lambda e: plain(e["stack"])), Column("front", _place)]
    columns = [
        *(_value(metric, front) for metric in front.metrics),
        Column("probability", lambda e: number(e["probability"], lambda p: f"{p:.2f}")),
        Column("dominated by", _dominated_by),
    ]
    entries = [{str(key): value for key, value in entry.items()} for entry in front.rows.to_dict("records")]
    table = laid_out(names, columns, entries)
    excluded = [f"`{label}` is not considered: {reason}" for label, reason in front.excluded.items()]
    return Section([clean(line) for line in heading], [table] if table else [], [*front.notes, *excluded], _LEGEND)


def _value(metric: str, front: "Front") -> Column:
    full = front.full_names[metric]
    human = (lambda x: f"{x:.3f}") if full.startswith("quality.") else human_of(full)
    return Column(clean(metric), lambda e: number(e[metric], human))


def _place(entry: Entry) -> str:
    return "knee" if entry["knee"] else "yes" if entry["on_front"] else "no"


def _dominated_by(entry: Entry) -> str:
    names = plain(entry["dominated_by"])
    return names if names == MISSING or entry["dominated_clearly"] else f"{names} (estimate)"


def _identity(front: "Front") -> dict[str, str]:
    return {name: getattr(front.board, name) for name in ("machine", "suite", "model", "workload", "title")}


def _plain_front(front: "Front") -> dict[str, object]:
    fields = {name: getattr(front, name) for name in ("metrics", "better", "knee", "excluded", "notes")}
    return _identity(front) | fields | {"rows": _rows(front)}


def _rows(front: "Front") -> list[Entry]:
    return [{str(k): None if missing(v) else v for k, v in row.items()} for row in front.rows.to_dict("records")]
