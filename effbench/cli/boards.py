"""What the commands that show leaderboards share: how they are asked for, read and reported."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from effbench.plugin.errors import unknown

if TYPE_CHECKING:
    from effbench.board.leaderboard import Leaderboard
    from effbench.board.view import View
    from effbench.plugin.catalog import Catalog
    from effbench.plugin.reporter import TextReporter

ResultsArgument = Annotated[Path, typer.Argument(metavar="PATH", help="A results folder, or any folder within it.")]
FilterOption = Annotated[
    str | None,
    typer.Option(
        "--filter", metavar="EXPR", help="Only these trials or rows, e.g. 'seq_len >= 128 and train_speed_ratio > 1'."
    ),
]
ByOption = Annotated[
    list[str] | None,
    typer.Option("--by", metavar="AXIS", help="A board for each value of it, e.g. seq_len; may be repeated."),
]
AggregateOption = Annotated[
    bool, typer.Option("--aggregate", help="One board per suite and machine, over all models and workloads.")
]
FormatOption = Annotated[str, typer.Option("--format", help="table, markdown, csv or json.")]


def view_of(filter_: str | None, by: list[str] | None, *, aggregate: bool, sort: str | None = None) -> "View":
    """What the options choose; InputError where the filter is no expression."""
    from effbench.board.expression import parse
    from effbench.board.view import View

    where = None if filter_ is None else parse(filter_)
    return View(where=where, by=tuple(by or ()), aggregate=aggregate, sort=sort or "")


def boards_of(path: Path, view: "View | None" = None) -> "list[Leaderboard]":
    """All boards below a folder; what a user must know of the files or of finding none goes to stderr."""
    from effbench.board.leaderboard import build
    from effbench.board.view import EVERYTHING

    view = view or EVERYTHING
    with warnings_told():
        boards = build(path, view=view)
    if not boards:
        typer.echo(f"effbench: no trial records {'chosen by the filter ' if view.where else ''}below {path}", err=True)
    return boards


@contextmanager
def warnings_told() -> Iterator[None]:
    """What is warned about within goes to stderr, a line each; files that are no records, for instance."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    for problem in dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, UserWarning)):
        typer.echo(f"effbench: {problem}", err=True)


def reporter_of(catalog: "Catalog", kind: str, format_: str) -> "TextReporter":
    """The reporter `kind-format`; InputError where there is no such format of that kind."""
    formats = [name.removeprefix(f"{kind}-") for name in catalog.reporters.names() if name.startswith(f"{kind}-")]
    if format_ not in formats:
        raise unknown("format", format_, formats)
    return catalog.text_reporter(f"{kind}-{format_}")
