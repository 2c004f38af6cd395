"""Published claims and what the records say of them: terminal, Markdown, CSV, JSON."""

import json
from itertools import groupby
from typing import TYPE_CHECKING, ClassVar

from effbench.plugin import TextReporter
from effbench.plugin.text import clean, csv_of, missing

from .layout import Section, TerminalReporter, in_markdown

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


class ClaimsTableReporter(ClaimsReporter, TerminalReporter):
    """Claims for a terminal."""

    name: ClassVar = "claims-table"
    file: ClassVar = "claims.txt"

    def sections(self, boards: "list[Leaderboard]") -> list[Section]:
        """How many of each verdict, then one per machine and suite."""
        return _sections(boards)


class ClaimsMarkdownReporter(ClaimsReporter):
    """Claims in GitHub's Markdown."""

    name: ClassVar = "claims-markdown"
    file: ClassVar = "CLAIMS.md"

    def render(self, boards: "list[Leaderboard]") -> str:
        """How many of each verdict, then a section per machine and suite."""
        return in_markdown("Published claims", _sections(boards))


class ClaimsCsvReporter(ClaimsReporter):
    """One line per claim and board."""

    name: ClassVar = "claims-csv"
    file: ClassVar = "claims.csv"

    def render(self, boards: "list[Leaderboard]") -> str:
        """Columns as `claims.CLAIM_COLUMNS`; an empty field is a missing value."""
        from effbench.board.claims import claims_frame

        frame = claims_frame(boards).map(lambda value: clean(value) if isinstance(value, str) else value)
        return csv_of(frame)


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


def _sections(boards: "list[Leaderboard]") -> list[Section]:
    """The counts with the legend, and a table below a title for each machine and suite."""
    from effbench.board.claims import counts, judge_all

    judgements = judge_all(boards)
    numbers = ", ".join(f"{count} {verdict}" for verdict, count in counts(judgements).items() if count)
    summary = f"verdicts on claims: {numbers}" if judgements else "no claims in the suites of these records"
    groups = groupby(judgements, key=lambda j: (j.machine, j.suite))
    tables = [(f"{suite} on {machine}", _rows(list(own))) for (machine, suite), own in groups]
    return [Section([summary], [], [], _LEGEND), *(Section([title], [(_TITLES, rows)], [], "") for title, rows in tables)]


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
