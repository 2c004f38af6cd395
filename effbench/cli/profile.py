"""`effbench profile`: where the time of a step goes, for the terminal and for TensorBoard."""

import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from effbench.cli.options import PluginOption, SetOption, SuiteArgument, launcher_for, prepare
from effbench.plugin.errors import InputError, unknown

if TYPE_CHECKING:
    from effbench.launch.profile import CellProfile
    from effbench.plan.plan import Plan
    from effbench.plugin.cell import Cell
    from effbench.store.profile import PartProfile

_SHOWN = 8
"""Operators of each part."""


def profile(
    suite: SuiteArgument,
    stack: Annotated[
        list[str] | None, typer.Option("--stack", metavar="NAME", help="Only this stack; may be repeated. All by default.")
    ] = None,
    cell: Annotated[
        str | None, typer.Option("--cell", metavar="TEXT", help="Only cells with this in their id; see `effbench plan --json`.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where traces are kept.")] = Path("effbench-profiles"),
    set_: SetOption = None,
    plugin: PluginOption = None,
    launcher: Annotated[str, typer.Option(help="How workers start; see `effbench list launchers`.")] = "local",
) -> None:
    """Record where the time of cells goes: training steps, prefill and decoded tokens under torch.profiler.

    Each cell runs once, like a trial, and leaves no record: the profiler slows what it watches. What a profile says is where
    time goes, not how much of it there is. The traces open in TensorBoard and in https://ui.perfetto.dev.

    Examples: effbench profile quick --stack lora; effbench profile quick --stack full --stack bf16 --cell s128-b4 --out /tmp/p;
    effbench profile my.toml --stack lora --set axes.seq_len=[512]

    Exit status: 0 every cell has its profile, 1 some trial failed, 2 bad input.
    """
    from effbench.cli.progress import describe
    from effbench.launch.profile import profile_cells
    from effbench.launch.worker import WorkerError

    planned, catalog, sources = prepare(suite, plugin, stack, set_)
    chosen = _chosen(planned, stack, cell)
    starter = launcher_for(planned, catalog, launcher, {})
    failed = 0
    try:
        for found in profile_cells(planned, catalog, sources, starter, chosen, out, lambda phase: None):
            typer.echo(describe(found.cell))
            _show(found)
            failed += found.error is not None
    except WorkerError as error:
        raise InputError(str(error)) from error
    typer.echo(
        "Time is each operator's own. Kinds go by its name: what a model writes out in Python counts as its single operators."
    )
    if find_spec("torch_tb_profiler") is None:
        typer.echo("TensorBoard's PyTorch Profiler tab needs: pip install 'effbench[profile]'")
    typer.echo(f"open the traces: tensorboard --logdir {shlex.quote(str(out))}")
    if failed:
        raise typer.Exit(1)


def _chosen(planned: "Plan", stacks: list[str] | None, text: str | None) -> "list[Cell]":
    """The cells to profile; planning has added the baseline to the stacks that were asked for."""
    cells = [c for c in planned.cells if (not stacks or c.stack in stacks) and (text is None or text in c.id)]
    for skip in planned.skips:
        if not stacks or skip.cell.stack in stacks:
            typer.echo(f"skipped: {skip.cell.id}: {skip.reason}", err=True)
    if not cells and text is not None:
        raise unknown("cell", text, [c.id for c in planned.cells if not stacks or c.stack in stacks])
    if not cells:
        raise InputError("nothing to profile: every cell is skipped")
    return cells


def _show(found: "CellProfile") -> None:
    from rich.console import Console
    from rich.table import Table

    from effbench.store.profile import KINDS

    console = Console()
    if found.error is not None:
        typer.echo(f"  the trial did not end well; what came before is kept:\n{found.error}", err=True)
    if not found.parts:
        return
    device = "GPU" if found.parts[0].device == "cuda" else "CPU"
    kinds = Table(f"{device} time", *(part.part for part in found.parts), show_edge=False, pad_edge=False)
    kinds.add_row("per step or token", *(_milliseconds(part.seconds) for part in found.parts))
    for kind in KINDS:
        if any(part.share(kind) for part in found.parts):
            kinds.add_row(kind, *(f"{part.share(kind):.1%}" for part in found.parts))
    console.print(kinds, "")
    for part in found.parts:
        console.print(_operators(part), "")


def _operators(part: "PartProfile") -> "object":
    from rich.markup import escape
    from rich.table import Table

    table = Table(part.part, "kind", "calls", "time", "share", show_edge=False, pad_edge=False)
    for operator in part.operators[:_SHOWN]:
        share = f"{operator.seconds / part.seconds:.1%}"
        table.add_row(escape(operator.name), operator.kind, f"{operator.calls:.0f}", _milliseconds(operator.seconds), share)
    return table


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"
