"""`effbench run`: measure what is missing, then show the leaderboard."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from effbench.cli.options import (
    PluginOption,
    ResultsOption,
    SetOption,
    StackOption,
    SuiteArgument,
    flags_and_values,
    prepare,
    refuse_unsupported,
)
from effbench.plugin.errors import InputError

if TYPE_CHECKING:
    from effbench.launch.budget import Budget
    from effbench.launch.orchestrate import FurtherRounds, Run
    from effbench.launch.schedule import Turn
    from effbench.plan.plan import Plan
    from effbench.store.record import Record

_BESIDE_RECORDS = ("markdown", "csv", "scaling-csv", "lengths-csv", "world-sizes-csv", "claims-markdown", "claims-csv")
"""The formats that a run leaves beside its records."""


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
    budget: Annotated[
        str | None, typer.Option(metavar="10m", help="Stop in time, after one full round at least; the same command goes on.")
    ] = None,
    until_clear: Annotated[
        bool, typer.Option("--until-clear", help="Further rounds for what is UNCLEAR, up to 20 rounds or the budget.")
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try trials again that did not end well or were disturbed.")
    ] = False,
    only_round: Annotated[int | None, typer.Option(min=1, metavar="N", help="Of all rounds, measure this one alone.")] = None,
    only_world_size: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Only this world size, and the baselines it is paired with.")
    ] = None,
    partition: Annotated[str | None, typer.Option(metavar="NAME", help="With --launcher slurm: where to run.")] = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="… machines for world sizes above 1.")] = None,
    gpus_per_node: Annotated[int | None, typer.Option(min=1, help="… GPUs of each; without them, on the CPU.")] = None,
    cpus_per_task: Annotated[int | None, typer.Option(min=1, help="… cores of each; what the largest cell needs.")] = None,
    time: Annotated[str | None, typer.Option(metavar="1h", help="… limit of one array element.")] = None,
    slurm: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="… other options of sbatch, e.g. account=me, exclusive=no.")
    ] = None,
) -> None:
    """Measure a suite on this machine. The same command again runs only what is missing.

    Examples: effbench run quick; effbench run my.toml --rounds 5; effbench run quick --stack lora --set training.steps=20;
    effbench run quick --until-clear --budget 20m

    On a cluster, one array element for each round of each world size: effbench run my.toml --results shared/results
    --launcher slurm --partition gpu --gpus-per-node 2 --time 2h --slurm account=me

    Exit status: 0 every trial is ok or skipped, 1 some trial failed, 2 bad input, 130 stopped by Ctrl-C.
    """
    from effbench.board.clarity import LOOKS
    from effbench.launch.budget import Budget, parse_duration
    from effbench.launch.orchestrate import Run, rounds_of
    from effbench.launch.schedule import WHOLE, Part

    limit = Budget(parse_duration(budget) if budget else None)
    part = Part(only_round, only_world_size)
    if until_clear and part != WHOLE:
        raise InputError("--until-clear looks at whole boards: leave out --only-round and --only-world-size")
    planned, catalog, sources = prepare(suite, plugin, stack, set_)
    part.check(planned)
    count = only_round or rounds or planned.suite.rounds
    given = {
        "nnodes": nnodes,
        "rdzv_endpoint": rdzv_endpoint,
        "partition": partition,
        "nodes": nodes,
        "gpus_per_node": gpus_per_node,
        "cpus_per_task": cpus_per_task,
        "time": parse_duration(time, "--time") if time else None,
        "slurm": flags_and_values(slurm) if slurm else None,
    }
    options = {option: value for option, value in given.items() if value is not None}
    if array := catalog.array_launcher(launcher, options):
        from effbench.cli.array import Asked, run_array

        if budget or until_clear or part != WHOLE:
            raise InputError(f"--budget, --until-clear and --only-… do not go with --launcher {launcher}: use --rounds")
        return run_array(array, catalog, Asked(suite, results, plugin, stack, set_, retry_failed), count)
    starter = catalog.launcher(launcher, options)
    refuse_unsupported(planned, starter)
    most = max(count, LOOKS[0]) if until_clear else count
    session = Run(planned, catalog, sources, results, most, starter, retry_failed, part)
    _announce(planned, session)
    interrupted, left = _execute(session, limit, _further(session) if until_clear else None)
    show(session.store.folder, results)
    records = session.records()
    if left:
        fewest, most = rounds_of(records, planned.cells)
        typer.echo(
            f"the budget is used up: {len(left)} trials left, cells have {fewest} to {most} rounds; the same command goes on"
        )
    if interrupted:
        typer.echo("stopped; the same command continues where it stopped", err=True)
        raise typer.Exit(130)
    if report_failures(records):
        raise typer.Exit(1)


def _announce(planned: "Plan", session: "Run") -> None:
    for problem in session.problems:
        typer.echo(f"effbench: {problem}", err=True)
    for reason, count in planned.skip_reasons():
        typer.echo(f"skipped: {count} cells: {reason}", err=True)
    for note in planned.notes:
        typer.echo(f"note: {note}", err=True)
    total = sum(planned.rounds(cell, session.rounds) for cell in planned.cells)
    pending = session.pending()
    again = sum(turn.again for turn in pending)
    lost = sum(session.measured.out_of_memory.reason(turn.cell) is not None for turn in pending)
    typer.echo(
        f"{planned.suite.name}: {total} trials ({len(planned.cells)} cells, {session.rounds} rounds), {len(pending)} to run"
        + (f", {again} of them again: a stack and its baseline are compared within one session" if again else "")
        + (f", {lost} of them not launched: memory ran out before; `--retry-failed` tries again" if lost else "")
    )


def _execute(session: "Run", budget: "Budget", further: "FurtherRounds | None") -> "tuple[bool, list[Turn]]":
    """Whether Ctrl-C stopped it, and what the budget left."""
    from effbench.cli.progress import progress_for
    from effbench.launch.worker import WorkerError

    if not (pending := session.pending()) and further is None:
        return False, []
    with progress_for(len(pending), sys.stdout, budget.left) as progress:
        try:
            return False, session.execute(progress, budget, further)
        except KeyboardInterrupt:
            return True, []
        except WorkerError as error:
            raise InputError(str(error)) from error


def _further(session: "Run") -> "FurtherRounds":
    """`--until-clear`: at each look, the cells whose speed is unclear go on, and the baseline's with them."""
    from effbench.board.clarity import next_look, unclear
    from effbench.board.frame import load
    from effbench.board.leaderboard import build

    def choose(rounds: int) -> tuple[int, set[str]] | None:
        look = next_look(rounds)
        if look is None:
            return None
        frame = load(session.store.folder)
        # Only of these rounds: a run that was stopped further on sees what it saw before, and goes on as it would have.
        cells = unclear(build(frame[frame["round"] <= rounds]), session.plan.cells)
        return (look, cells) if cells else None

    return choose


def report_failures(records: "list[Record]") -> bool:
    """Say which trials failed or were disturbed; whether any failed."""
    bad = [record for record in records if record.status not in ("ok", "skipped")]
    if bad:
        typer.echo(f"{len(bad)} trials did not end well; `--retry-failed` tries them again:", err=True)
    for record in bad[:10]:
        typer.echo(f"  {record.cell_id} round {record.round}: {record.status}: {record.headline}", err=True)
    if dirty := [record for record in records if record.dirty]:
        reason = dirty[0].dirty
        typer.echo(
            f"{len(dirty)} trials stayed disturbed ({reason}); `--retry-failed` on a quieter machine mends them", err=True
        )
    return bool(bad)


def show(folder: Path, results: Path) -> None:
    """Print the leaderboards of one suite on one machine, and write them beside the records."""
    from effbench.board.leaderboard import build
    from effbench.plugin.discovery import discover
    from effbench.store.store import write_atomic

    catalog = discover()
    boards = build(folder)
    typer.echo(catalog.text_reporter("table").render(boards))
    files: dict[str, bytes] = {}
    for name in _BESIDE_RECORDS:
        files |= catalog.reporters.get(name)().files(boards)
    for file, content in files.items():
        write_atomic(folder / file, content)
    *others, last = files
    typer.echo(f"records, {', '.join(others)} and {last}: {folder}")
    typer.echo(f"show again: effbench board {results}")
