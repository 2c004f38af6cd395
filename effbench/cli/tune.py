"""`effbench tune`: each stack's learning rate, chosen on the validation split and written into the suite."""

import math
from typing import TYPE_CHECKING, Annotated

import typer

from effbench.cli.options import PluginOption, SetOption, SuiteArgument, launcher_for, prepare
from effbench.plugin.errors import InputError

if TYPE_CHECKING:
    from effbench.launch.tune import Sweep
    from effbench.plan.plan import Plan
    from effbench.plugin.cell import Cell


def tune(
    suite: SuiteArgument,
    stack: Annotated[
        list[str] | None, typer.Option("--stack", metavar="NAME", help="Only this stack; may be repeated. All by default.")
    ] = None,
    lr: Annotated[
        list[float] | None,
        typer.Option("--lr", min=0, help="A learning rate to try; may be repeated. 1e-4 … 1e-2 by default, and beyond."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, max=100, help="Trials of each learning rate, whose scores are averaged.")] = 1,
    set_: SetOption = None,
    plugin: PluginOption = None,
    launcher: Annotated[str, typer.Option(help="How workers start; see `effbench list launchers`.")] = "local",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what is found and leave the suite as it is.")] = False,
) -> None:
    """Choose each stack's learning rate on the validation split, and write it into the suite with the evidence.

    One cell stands for a stack: the middle one of its axes; `--set` changes them. The trials train and are scored like a
    run's, with seeds that no run has, and never see the test split, which the board shows. They leave no record.

    Examples: effbench tune my.toml; effbench tune my.toml --stack lora --lr 1e-3 --lr 3e-3 --lr 1e-2 --seeds 3;
    effbench tune my.toml --set axes.seq_len=[128] --dry-run

    Exit status: 0 every stack has its learning rate, 1 some stack has none that works, 2 bad input.
    """
    from effbench.launch.tune import sweeps
    from effbench.launch.worker import WorkerError
    from effbench.plan.suite import find_suite
    from effbench.plan.tuned import write_tuned

    file = find_suite(suite)
    both = [*(set_ or ()), 'phases=["train", "infer"]']  # quality is that of what inference uses
    planned, catalog, sources = prepare(suite, plugin, stack, both)
    chosen = _chosen(planned, stack)
    starter = launcher_for(planned, catalog, launcher, {})
    if any(rate <= 0 for rate in lr or ()):
        raise InputError("--lr: a learning rate is above 0")
    without = 0
    try:
        for found in sweeps(planned, catalog, sources, starter, chosen, sorted(set(lr or ())), seeds, _say_trial):
            _show(found)
            without += found.best is None
            if found.best is not None and not dry_run:
                write_tuned(file, found.cell.stack, found.best, _evidence(found))
    except WorkerError as error:
        raise InputError(str(error)) from error
    if not dry_run and without < len(chosen):
        typer.echo(f"written into {file}")
    if without:
        raise typer.Exit(1)


def _chosen(planned: "Plan", stacks: list[str] | None) -> "list[Cell]":
    """Of each stack that trains, the cell in the middle."""
    found: dict[str, list[Cell]] = {}
    for cell in planned.cells:
        if "train" not in planned.phase_skips.get(cell.id, {}) and (not stacks or cell.stack in stacks):
            found.setdefault(cell.stack, []).append(cell)
    for name in stacks or planned.suite.stacks:
        if name not in found:
            typer.echo(f"skipped: {name}: it does not train here; see `effbench plan`", err=True)
    if not found:
        raise InputError("nothing to tune: no stack trains; see `effbench plan`")
    return [cells[len(cells) // 2] for cells in found.values()]


def _say_trial(cell: "Cell", lr: float) -> None:
    typer.echo(f"{cell.stack}: lr {lr:g}", err=True)


def _show(found: "Sweep") -> None:
    typer.echo(f"{found.cell.stack} ({found.metric} on validation, {found.cell.id})")
    for lr, score in found.scores.items():
        mark = "  <- best" if lr == found.best else ""
        typer.echo(f"  lr {lr:<8g} {found.errors.get(lr) or f'{score:.4f}'}{mark}")
    if found.best is None:
        typer.echo(f"  no learning rate works for {found.cell.stack}", err=True)
    elif len(found.scores) > 1 and found.best in (min(found.scores), max(found.scores)):
        typer.echo("  the best is the last one tried on its side: try further with --lr")


def _evidence(found: "Sweep") -> dict[str, object]:
    cell = found.cell
    return {
        "metric": found.metric,
        "split": "validation",
        "lr": list(found.scores),
        "scores": [score if math.isnan(score) else round(score, 4) for score in found.scores.values()],
        "seeds": list(found.seeds),
        "steps": cell.steps,
        "documents": cell.quality_documents,
        "model": cell.model,
        "workload": cell.workload,
        "seq_len": cell.seq_len,
        "batch_size": cell.batch_size,
    }
