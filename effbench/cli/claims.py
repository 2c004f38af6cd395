"""`effbench claims`: what the records say of published claims."""

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from effbench.cli.boards import FormatOption, ResultsArgument, boards_of, reporter_of
from effbench.plugin.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from effbench.board.leaderboard import Leaderboard
    from effbench.plan.suite import Suite


def claims(
    path: ResultsArgument,
    suite: Annotated[
        list[str] | None,
        typer.Option(metavar="SUITE", help="Judge by this suite's claims and not by those beside the records; repeatable."),
    ] = None,
    format_: FormatOption = "table",
) -> None:
    """Judge published claims by the records of a results folder: SUPPORTED, REFUTED, UNCLEAR or NOT-APPLICABLE, with evidence.

    Claims are written in suites ([[claims]]), and copied beside the records of a run. A refuted claim is a finding about this
    machine and this scale, so the exit status is 0 whatever the verdicts are.

    Examples: effbench claims effbench-results; effbench claims results --suite peft --suite pruning;
    effbench claims results --suite my.toml --format markdown
    """
    from effbench.plan.suite import find_suite, read_suite
    from effbench.plugin.discovery import discover

    reporter = reporter_of(discover(), "claims", format_)
    given = [read_suite(find_suite(reference)) for reference in suite or ()]
    boards = boards_of(path)
    shown = _judged_by(boards, given) if given else boards
    typer.echo(reporter.render(shown))
    if not given and (newer := _with_other_claims(boards)):
        options = " ".join(f"--suite {name}" for name in newer)
        typer.echo(
            f"note: the standard suites have other claims than those beside the records; judge by them: {options}", err=True
        )


def _judged_by(boards: "Sequence[Leaderboard]", suites: "Sequence[Suite]") -> "list[Leaderboard]":
    """The boards of these suites, with the claims of these files."""
    by_name = {suite.name: suite.claims for suite in suites}
    if boards and (missing := {*by_name} - {board.suite for board in boards}):
        measured = ", ".join(sorted({board.suite for board in boards}))
        raise InputError(f"no records of suite {', '.join(sorted(missing))} there; records are of: {measured}")
    return [
        replace(board, settings=board.settings.model_copy(update={"claims": by_name[board.suite]}))
        for board in boards
        if board.suite in by_name
    ]


def _with_other_claims(boards: "Sequence[Leaderboard]") -> list[str]:
    """Names of standard suites that claim something which the suites beside the records do not."""
    from effbench.plan.suite import read_suite, standard_suites

    known = {board.suite: board.settings.claims for board in boards}
    standard = [read_suite(file) for file in standard_suites() if file.stem in known]
    return [suite.name for suite in standard if any(claim not in known[suite.name] for claim in suite.claims)]
