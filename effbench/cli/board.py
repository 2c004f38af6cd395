"""`effbench board`: records as leaderboards."""

import warnings
from pathlib import Path
from typing import Annotated

import typer


def board(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A results folder, or any folder within it.")],
    format_: Annotated[
        str, typer.Option("--format", help="table, markdown, csv, json or html; see `effbench list reporters`.")
    ] = "table",
) -> None:
    """Show the leaderboards of a results folder: stacks against their baseline, with intervals and verdicts.

    Examples: effbench board effbench-results; effbench board effbench-results --format markdown;
    effbench board effbench-results --format html > index.html
    """
    from effbench.board.leaderboard import build
    from effbench.plugin.discovery import discover

    reporter = discover().text_reporter(format_)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        boards = build(path)
    for problem in dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, UserWarning)):
        typer.echo(f"effbench: {problem}", err=True)
    if not boards:
        typer.echo(f"effbench: no trial records below {path}", err=True)
    typer.echo(reporter.render(boards))
