"""`effbench pareto`: which stacks are worth their cost."""

from dataclasses import replace
from typing import Annotated

import typer

from effbench.cli.boards import (
    AggregateOption,
    ByOption,
    FilterOption,
    FormatOption,
    ResultsArgument,
    boards_of,
    reporter_of,
    view_of,
)
from effbench.plugin.errors import InputError


def pareto(
    path: ResultsArgument,
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,…", help="Two or more, e.g. train_speed,train_memory,bits_per_byte; default: speed and quality."
        ),
    ] = None,
    filter_: FilterOption = None,
    by: ByOption = None,
    aggregate: AggregateOption = False,
    format_: FormatOption = "table",
) -> None:
    """Show the Pareto front of each leaderboard: the stacks that no other beats on every metric, and how sure that is.

    A metric is a column's name on the board (train_speed), a metric of the records (train.tokens_per_s) or a quality score
    (bits_per_byte); METRIC:lower or METRIC:higher says which is better where its name does not.

    Examples: effbench pareto effbench-results;
    effbench pareto effbench-results --metrics decode_speed,checkpoint,bits_per_byte --filter "seq_len == 128"
    """
    from effbench.plugin.discovery import discover

    reporter = reporter_of(discover(), "pareto", format_)
    boards = boards_of(path, view_of(filter_, by, aggregate=aggregate))
    front = [name.strip() for name in (metrics or "").split(",") if name.strip()]
    if metrics is not None and not front:
        raise InputError("--metrics: expected two or more, as in train_speed,bits_per_byte")
    chosen = [
        replace(board, settings=board.settings.model_copy(update={"front": front or board.settings.front})) for board in boards
    ]
    typer.echo(reporter.render(chosen))
