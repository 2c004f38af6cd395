"""`effbench plan`: what a suite would run, and what it would skip."""

import json
from typing import Annotated

import typer

from effbench.cli.options import PluginOption, SetOption, StackOption, SuiteArgument, prepare


def plan(
    suite: SuiteArgument,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds to estimate for; the suite's by default.")] = None,
    stack: StackOption = None,
    set_: SetOption = None,
    plugin: PluginOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Cells, skips and the estimate as one object.")] = False,
) -> None:
    """Show the cells of a suite, what is skipped and why, and roughly how long it takes. Nothing is run.

    Examples: effbench plan quick; effbench plan my.toml --set axes.batch_size=[1,64] --json
    """
    from effbench.cli.progress import describe
    from effbench.plan.estimate import estimate

    planned, _, _ = prepare(suite, plugin, stack, set_)
    count = rounds or planned.suite.rounds
    guess = estimate(planned, count, {})
    if as_json:
        content = {
            "suite": planned.suite.name,
            "rounds": count,
            "cells": [
                {"id": c.id, **c.model_dump(mode="json"), "phase_skips": planned.phase_skips.get(c.id, {})}
                for c in planned.cells
            ],
            "skips": [{"id": s.cell.id, "stack": s.cell.stack, "reason": s.reason} for s in planned.skips],
            "notes": planned.notes,
            "estimate": {"minutes": guess.minutes, "memory_gb": guess.memory_gb},
        }
        typer.echo(json.dumps(content, indent=2))
        return
    for cell in planned.cells:
        skipped = "".join(f"; no {phase}: {reason}" for phase, reason in planned.phase_skips.get(cell.id, {}).items())
        typer.echo(f"{describe(cell)}{skipped}")
    for skip in planned.skips:
        typer.echo(f"skipped: {describe(skip.cell)}: {skip.reason}")
    for note in planned.notes:
        typer.echo(f"note: {note}")
    typer.echo(
        f"{len(planned.cells)} cells, {count} rounds, {len(planned.skips)} skipped; "
        f"very roughly {guess.minutes:.1f} minutes and {guess.memory_gb:.1f} GB"
    )
