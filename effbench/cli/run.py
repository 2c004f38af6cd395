"""`effbench run`: measure what is missing, then show the leaderboard."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from effbench.cli.options import PluginOption, ResultsOption, SetOption, StackOption, SuiteArgument, prepare
from effbench.plugin.errors import InputError

if TYPE_CHECKING:
    from effbench.plan.plan import Plan
    from effbench.plugin.catalog import Catalog
    from effbench.plugin.launcher import Launcher
    from effbench.store.record import Record


def run(
    suite: SuiteArgument,
    results: ResultsOption = Path("effbench-results"),
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds in total; more rounds, narrower intervals.")] = None,
    stack: StackOption = None,
    set_: SetOption = None,
    plugin: PluginOption = None,
    launcher: Annotated[str, typer.Option(help="How workers start; see `effbench list launchers`.")] = "local",
    nnodes: Annotated[int | None, typer.Option(min=1, help="Machines, with --launcher torchrun; see `effbench join`.")] = None,
    rdzv_endpoint: Annotated[
        str | None, typer.Option("--rdzv-endpoint", metavar="HOST:PORT", help="Where this machine waits for the others.")
    ] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try trials that did not end well again.")] = False,
) -> None:
    """Measure a suite on this machine. The same command again runs only what is missing.

    Examples: effbench run quick; effbench run my.toml --rounds 5; effbench run quick --stack lora --set training.steps=20

    Exit status: 0 every trial is ok or skipped, 1 some trial failed, 2 bad input, 130 stopped by Ctrl-C.
    """
    from effbench.cli.progress import progress_for
    from effbench.launch.orchestrate import Run
    from effbench.launch.worker import WorkerError

    planned, catalog, sources = prepare(suite, plugin, stack, set_)
    starter = _launcher(planned, catalog, launcher, {"nnodes": nnodes, "rdzv_endpoint": rdzv_endpoint})
    session = Run(planned, catalog, sources, results, rounds or planned.suite.rounds, starter, retry_failed)
    for problem in session.problems:
        typer.echo(f"effbench: {problem}", err=True)
    for reason, count in planned.skip_reasons():
        typer.echo(f"skipped: {count} cells: {reason}", err=True)
    for note in planned.notes:
        typer.echo(f"note: {note}", err=True)
    pending = session.pending()
    total = len(planned.cells) * session.rounds
    typer.echo(
        f"{planned.suite.name}: {total} trials ({len(planned.cells)} cells × {session.rounds} rounds), {len(pending)} to run"
    )
    interrupted = False
    if pending:
        with progress_for(len(pending), sys.stdout) as progress:
            try:
                session.execute(progress)
            except KeyboardInterrupt:
                interrupted = True
            except WorkerError as error:
                raise InputError(str(error)) from error
    _show(session.store.folder, results)
    if interrupted:
        typer.echo("stopped; the same command continues where it stopped", err=True)
        raise typer.Exit(130)
    bad = _failures([record for _, record in session.store.read().records], {cell.id for cell in planned.cells})
    if bad:
        typer.echo(f"{len(bad)} trials did not end well; `--retry-failed` tries them again:", err=True)
        for record in bad[:10]:
            typer.echo(f"  {record.cell_id} round {record.round}: {record.status}: {record.headline}", err=True)
        raise typer.Exit(1)


def _launcher(planned: "Plan", catalog: "Catalog", name: str, options: dict[str, Any]) -> "Launcher":
    """The launcher with the options that were given; InputError where it cannot start what the plan needs."""
    launcher = catalog.launcher(name, {option: value for option, value in options.items() if value is not None})
    for size in sorted({cell.world_size for cell in planned.cells}):
        if reason := launcher.unsupported(size):
            raise InputError(f"launcher {name}: {reason}")
    return launcher


def _failures(records: "list[Record]", planned: set[str]) -> "list[Record]":
    return [r for r in records if r.cell_id in planned and r.status not in ("ok", "skipped")]


def _show(folder: Path, results: Path) -> None:
    from effbench.board.leaderboard import build
    from effbench.plugin.discovery import discover
    from effbench.store.store import write_atomic

    reporters = discover().reporters
    boards = build(folder)
    typer.echo(reporters.get("table")().render(boards))
    for name, file in (("markdown", "LEADERBOARD.md"), ("csv", "leaderboard.csv")):
        write_atomic(folder / file, reporters.get(name)().render(boards).encode())
    typer.echo(f"records, LEADERBOARD.md and leaderboard.csv: {folder}")
    typer.echo(f"show again: effbench board {results}")
