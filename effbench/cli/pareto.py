"""`effbench pareto`: which stacks are worth their cost."""

from dataclasses import replace
from typing import Annotated

import typer

from effbench.cli.board import FilterOption, ResultsArgument, boards_of, expression
from effbench.plugin.errors import InputError, unknown


def pareto(
    path: ResultsArgument,
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,…", help="Two or more, e.g. train_speed,train_memory,bits_per_byte; default: speed and quality."
        ),
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
    from effbench.board.view import View
    from effbench.plugin.discovery import discover

    catalog = discover()
    formats = [name.removeprefix("pareto-") for name in catalog.reporters.names() if name.startswith("pareto-")]
    if format_ not in formats:
        raise unknown("format", format_, formats)
    boards = boards_of(path, View(where=expression(filter_), by=tuple(by or ()), aggregate=aggregate))
    front = [name.strip() for name in (metrics or "").split(",") if name.strip()]
    if metrics is not None and not front:
        raise InputError("--metrics: expected two or more, as in train_speed,bits_per_byte")
    chosen = [
        replace(board, settings=board.settings.model_copy(update={"front": front or board.settings.front})) for board in boards
    ]
    typer.echo(catalog.text_reporter(f"pareto-{format_}").render(chosen))
