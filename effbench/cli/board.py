"""`effbench board`: records as leaderboards."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from effbench.board.expression import Expression
    from effbench.board.leaderboard import Leaderboard
    from effbench.board.view import View

ResultsArgument = Annotated[Path, typer.Argument(metavar="PATH", help="A results folder, or any folder within it.")]
FilterOption = Annotated[
    str | None,
    typer.Option(
        "--filter", metavar="EXPR", help="Only these trials or rows, e.g. 'seq_len >= 128 and train_speed_ratio > 1'."
    ),
]


def board(
    path: ResultsArgument,
    format_: Annotated[
        str, typer.Option("--format", help="table, markdown, csv or json; see `effbench list reporters`.")
    ] = "table",
    filter_: FilterOption = None,
    by: Annotated[
        list[str] | None,
        typer.Option("--by", metavar="AXIS", help="A board for each value of it, e.g. seq_len; may be repeated."),
    ] = None,
    aggregate: Annotated[
        bool, typer.Option("--aggregate", help="One board per suite and machine, over all models and workloads.")
    ] = False,
    sort: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Order of the rows shown; COLUMN:desc for the largest first.")
    ] = None,
) -> None:
    """Show the leaderboards of a results folder: stacks against their baseline, with intervals and verdicts.

    A filter on axes (seq_len, model, round, lora.rank, …) chooses trials before anything is compared, one on columns (stack,
    train_speed_ratio, quality_verdict, rank, …; --format csv has them all) chooses the rows to show.

    Examples: effbench board effbench-results; effbench board effbench-results --format markdown;
    effbench board effbench-results --by seq_len --filter "train_speed_verdict == 'FASTER'" --sort train_speed_ratio:desc;
    effbench board effbench-results --aggregate
    """
    from effbench.board.view import View
    from effbench.plugin.discovery import discover

    reporter = discover().text_reporter(format_)
    view = View(where=expression(filter_), by=tuple(by or ()), aggregate=aggregate, sort=sort or "")
    typer.echo(reporter.render(boards_of(path, view)))


def expression(text: str | None) -> "Expression | None":
    """What `--filter` was given; InputError where it is none."""
    from effbench.board.expression import parse

    return None if text is None else parse(text)


def boards_of(path: Path, view: "View") -> "list[Leaderboard]":
    """All boards below a folder; what a user must know of the files or of finding none goes to stderr."""
    from effbench.board.leaderboard import build

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        boards = build(path, view=view)
    for problem in dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, UserWarning)):
        typer.echo(f"effbench: {problem}", err=True)
    if not boards:
        typer.echo(f"effbench: no trial records {'chosen by the filter ' if view.where else ''}below {path}", err=True)
    return boards
