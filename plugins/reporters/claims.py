"""Published claims and what the records say of them: terminal, Markdown, CSV, JSON."""

import json
import shutil
from io import StringIO
from itertools import groupby
from typing import TYPE_CHECKING, ClassVar

from effbench.plugin import TextReporter

from .text import clean, markdown, markdown_row, missing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from effbench.board.claims import Judgement
    from effbench.board.leaderboard import Leaderboard

_TITLES = ["verdict", "claim", "evidence", "source"]
_LEGEND = (
    "SUPPORTED: the whole interval is on the claimed side; REFUTED: wholly on the other, which is a finding about this machine "
    "and this scale; UNCLEAR: neither, or fewer than 3 rounds; NOT-APPLICABLE: nothing was measured that could say. Intervals "
    "are at 98.75 %, the level of every verdict; (counted) needs none."
)


class ClaimsReporter(TextReporter):
    """Claims: what all forms of it share."""

    def files(self, boards: "list[Leaderboard]") -> dict[str, bytes]:
        """None where no suite has claims."""
        return super().files(boards) if any(board.settings.claims for board in boards) else {}


class ClaimsTableReporter(ClaimsReporter):
    """Claims for a terminal."""

    name: ClassVar = "claims-table"
    file: ClassVar = "claims.txt"

    def render(self, boards: "list[Leaderboard]") -> str:
        """How many of each verdict, then a table per machine and suite, as wide as the terminal."""
        from rich import box
        from rich.console import Console
        from rich.table import Table as Grid
        from rich.text import Text

        out = StringIO()
        width = shutil.get_terminal_size((120, 24)).columns
        # Text objects are never read as markup, so names such as "[red]" or ":smile:" stay what they are.
        console = Console(file=out, width=width, highlight=False, markup=False, emoji=False)
        summary, sections = _content(boards)
        console.print(Text(summary))
        for title, rows in sections:
            console.print()
            console.print(Text(title))
            grid = Grid(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
            for name, ratio in zip(_TITLES, (None, 5, 6, 3), strict=True):
                grid.add_column(Text(name), overflow="fold", no_wrap=ratio is None, ratio=ratio)
            for row in rows:
                grid.add_row(*map(Text, row))
            console.print(grid)
        console.print(Text(_LEGEND))
        return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


class ClaimsMarkdownReporter(ClaimsReporter):
    """Claims in GitHub's Markdown."""

    name: ClassVar = "claims-markdown"
    file: ClassVar = "CLAIMS.md"

    def render(self, boards: "list[Leaderboard]") -> str:
        """How many of each verdict, then a section per machine and suite."""
        summary, sections = _content(boards)
        lines = ["# Published claims", "", markdown(summary), ""]
        for title, rows in sections:
            table = [_TITLES, ["---"] * len(_TITLES), *rows]
            lines += [f"## {markdown(title)}", "", *map(markdown_row, table), ""]
        return "\n".join([*lines, _LEGEND, ""])


class ClaimsCsvReporter(ClaimsReporter):
    """One line per claim and board."""

    name: ClassVar = "claims-csv"
    file: ClassVar = "claims.csv"

    def render(self, boards: "list[Leaderboard]") -> str:
        """Columns as `claims.CLAIM_COLUMNS`; an empty field is a missing value."""
        from effbench.board.claims import claims_frame

        frame = claims_frame(boards).map(lambda value: clean(value) if isinstance(value, str) else value)
        return str(frame.to_csv(index=False))


class ClaimsJsonReporter(ClaimsReporter):
    """A list of judgements."""

    name: ClassVar = "claims-json"
    file: ClassVar = "claims.json"

    def render(self, boards: "list[Leaderboard]") -> str:
        """Missing values are null."""
        from effbench.board.claims import claims_frame

        entries = [
            {str(key): None if missing(value) else value for key, value in entry.items()}
            | {"where": json.loads(entry["where"]), "cells": entry["cells"].split()}
            for entry in claims_frame(boards).to_dict("records")
        ]
        return json.dumps(entries, indent=2, ensure_ascii=False, allow_nan=False)


def _content(boards: "list[Leaderboard]") -> "tuple[str, list[tuple[str, list[list[str]]]]]":
    """The counts, and rows of cells below a title for each machine and suite."""
    from effbench.board.claims import counts, judge_all

    judgements = judge_all(boards)
    numbers = ", ".join(f"{count} {verdict}" for verdict, count in counts(judgements).items() if count)
    summary = f"verdicts on claims: {numbers}" if judgements else "no claims in the suites of these records"
    groups = groupby(judgements, key=lambda j: (j.machine, j.suite))
    return summary, [(clean(f"{suite} on {machine}"), _rows(list(own))) for (machine, suite), own in groups]


def _rows(judgements: "Sequence[Judgement]") -> list[list[str]]:
    """The evidence names its board where a claim is judged on several."""
    several = {j.claim.says for i, j in enumerate(judgements) if any(o.claim == j.claim for o in judgements[:i])}
    return [
        [
            j.verdict,
            clean(j.claim.says),
            clean(f"{j.title}: {j.evidence}" if j.claim.says in several else j.evidence),
            clean(j.claim.source),
        ]
        for j in judgements
    ]
