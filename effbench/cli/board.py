"""`effbench board`: records as leaderboards."""

from typing import Annotated

import typer

from effbench.cli.boards import AggregateOption, ByOption, FilterOption, ResultsArgument, boards_of, view_of


def board(
    path: ResultsArgument,
    format_: Annotated[
        str, typer.Option("--format", help="table, markdown, csv, json or html; see `effbench list reporters`.")
    ] = "table",
    filter_: FilterOption = None,
    by: ByOption = None,
    aggregate: AggregateOption = False,
    sort: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Order of the rows shown; COLUMN:desc for the largest first.")
    ] = None,
) -> None:
    """Show the leaderboards of a results folder: stacks against their baseline, with intervals and verdicts.

    A filter on axes (seq_len, model, round, lora.rank, …) chooses trials before anything is compared, one on columns (stack,
    train_speed_ratio, quality_verdict, rank, …; --format csv has them all) chooses the rows to show.

    Examples: effbench board effbench-results; effbench board effbench-results --format markdown;
    effbench board effbench-results --by seq_len --filter "train_speed_verdict == 'FASTER'" --sort train_speed_ratio:desc;
    effbench board effbench-results --aggregate; effbench board effbench-results --format html > index.html
    """
    from effbench.plugin.discovery import discover

    reporter = discover().text_reporter(format_)
    typer.echo(reporter.render(boards_of(path, view_of(filter_, by, aggregate=aggregate, sort=sort))))
