"""`effbench pareto`: which stacks are worth their cost."""

from typing import TYPE_CHECKING, Annotated

import typer

from effbench.cli.board import FilterOption, ResultsArgument, boards_of, expression
from effbench.plugin.errors import InputError, unknown

if TYPE_CHECKING:
    from effbench.board.leaderboard import Leaderboard
    from effbench.board.pareto import Front


def pareto(
    path: ResultsArgument,
    metrics: Annotated[
        str | None,
        typer.Option(metavar="A,B,…", help="Two or more, e.g. train_speed,train_memory,bits_per_byte; default: speed and quality."),
    ] = None,
    filter_: FilterOption = None,
    by: Annotated[
        list[str] | None, typer.Option("--by", metavar="AXIS", help="A front for each value of it; may be repeated.")
    ] = None,
    aggregate: Annotated[
        bool, typer.Option("--aggregate", help="One front per suite and machine, over all models and workloads.")
    ] = False,
    format_: Annotated[str, typer.Option("--format", help="table, markdown, csv or json.")] = "table",
) -> None:
    """Show the Pareto front of each leaderboard: the stacks that no other beats on every metric, and how sure that is.

    A metric is a column's name on the board (train_speed), a metric of the records (train.tokens_per_s) or a quality score
    (bits_per_byte); METRIC:lower or METRIC:higher says which is better where its name does not.

    Examples: effbench pareto effbench-results;
    effbench pareto effbench-results --metrics decode_speed,checkpoint,bits_per_byte --filter "seq_len == 128"
    """
    from effbench_plugins.reporters.pareto import FORMATS, render

    from effbench.board.view import View

    if format_ not in FORMATS:
        raise unknown("format", format_, FORMATS)
    boards = boards_of(path, View(where=expression(filter_), by=tuple(by or ()), aggregate=aggregate))
    wanted = None if metrics is None else tuple(name.strip() for name in metrics.split(",") if name.strip())
    typer.echo(render(_fronts(boards, wanted), format_))


def _fronts(boards: "list[Leaderboard]", wanted: tuple[str, ...] | None) -> "list[Front]":
    """Of all boards that have the metrics; InputError where none has them, the others are named on stderr."""
    from effbench.board.pareto import default_metrics, pareto

    fronts, problems = [], []
    for board in boards:
        names = default_metrics(board) if wanted is None else wanted
        try:
            fronts.append(pareto(board, names))
        except InputError as error:
            reason = str(error) if names else "no speed and quality score together; choose --metrics"
            problems.append((board.title, InputError(reason)))
    if problems and not fronts:
        raise problems[0][1]
    for title, reason in problems:
        typer.echo(f"effbench: {title}: no front: {reason}", err=True)
    return fronts
