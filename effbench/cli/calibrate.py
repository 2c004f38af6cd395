"""`effbench calibrate`: this machine's own floor, and which differences it can tell apart."""

import json
import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from effbench.plugin.errors import InputError

if TYPE_CHECKING:
    from effbench.store.calibration import Calibration

_ROUNDS = (3, 5, 10, 20)
_DELTA = 0.03
"""The suites' default."""
_AA_S = 20.0
_SLOWER = 0.8
"""Of the rate with one thread: below, more threads were not merely useless."""


def calibrate(
    rounds: Annotated[
        int, typer.Option(min=3, help="Rounds of the same stack measured twice; at most about 20 s of them.")
    ] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Everything as one object.")] = False,
) -> None:
    """Measure what this machine can tell apart, in under a minute, and keep it for MFU.

    Clock, fixed cost of a trial, matmul peak, copy bandwidth, and the noise between two trials of the same stack: from it, the
    smallest slowdown that some numbers of rounds would call SLOWER. Run it on the machine as it is when you measure.

    Examples: effbench calibrate; effbench calibrate --rounds 20; effbench calibrate --json
    """
    from rich.console import Console

    from effbench.launch.calibrate import calibrate as measure
    from effbench.launch.worker import WorkerError
    from effbench.plugin.discovery import discover
    from effbench.store.calibration import write_calibration

    with Console(stderr=True).status("") as status:
        try:
            found = measure(discover(), rounds, _AA_S, status.update)
        except WorkerError as error:
            raise InputError(str(error)) from error
    file = write_calibration(found)
    if as_json:
        typer.echo(json.dumps(found.model_dump() | {"smallest_slowdown": _smallest(found)}, indent=2))
        return
    _show(found)
    typer.echo(f"kept for MFU: {file}")


def _smallest(found: "Calibration") -> dict[str, dict[str, float]]:
    """By metric and number of rounds: the smallest slowdown that gets its verdict."""
    from effbench.board.power import smallest_slowdown

    return {
        metric: {str(count): smallest_slowdown(noise, count, _DELTA) for count in _ROUNDS}
        for metric, noise in found.paired_noise.sd.items()
    }


def _show(found: "Calibration") -> None:
    from rich.console import Console

    from effbench.board.power import POWER

    console, timer, noise = Console(), found.timer, found.paired_noise
    typer.echo(f"machine      {found.machine}, torch {found.torch}")
    typer.echo(f"clock        steps of {1e9 * timer.resolution_s:.0f} ns; a look costs {1e9 * timer.cost_s:.0f} ns")
    typer.echo(f"empty trial  {found.empty_trial_s:.2f} s door to door: fork, load the shipped model, report\n")
    console.print(_rates(found), "")
    if slower := [key for key, rate in found.matmul_flops_per_s.items() if rate < _SLOWER * _with_one_thread(found, key)]:
        typer.echo(
            f"Slower than with one thread: {', '.join(slower)}. Other programs took part; calibrate again on a quiet machine.\n"
        )
    typer.echo(
        f"The same stack measured twice in each of {noise.rounds} rounds, {_threads(f'cpu {noise.threads}')}: the noise is the "
        f"standard deviation of the\nlog ratios, itself known to ±{1 / math.sqrt(2 * (noise.rounds - 1)):.0%}. Behind it, the "
        f"smallest slowdown that is called SLOWER in {POWER:.0%} of runs, for\none stack beside its baseline and "
        f"δ = {_DELTA:.0%}. Smaller ones stay UNCLEAR, or are SAME, more often than that.\n"
    )
    console.print(_power(found), "")
    if noise.disturbed:
        typer.echo(
            f"{noise.disturbed} of {2 * noise.rounds} trials were disturbed by other programs: on a quiet machine it sees more."
        )


def _with_one_thread(found: "Calibration", key: str) -> float:
    return found.matmul_flops_per_s[f"{key.rpartition(' ')[0]} 1"]


def _rates(found: "Calibration") -> Any:
    """Matmul and copy by number of threads."""
    from rich.table import Table

    columns = list(found.copy_bytes_per_s)
    table = Table("rates", *(_threads(column) for column in columns), show_edge=False, pad_edge=False)
    for dtype in dict.fromkeys(key.split()[1] for key in found.matmul_flops_per_s):
        device_threads = (column.split() for column in columns)
        cells = (found.matmul_flops_per_s.get(f"{device} {dtype} {threads}") for device, threads in device_threads)
        table.add_row(f"matmul {dtype}", *("–" if rate is None else f"{rate / 1e9:.3g} GFLOP/s" for rate in cells))
    table.add_row("copy", *(f"{rate / 1e9:.3g} GB/s" for rate in found.copy_bytes_per_s.values()))
    return table


def _threads(column: str) -> str:
    device, _, threads = column.partition(" ")
    if device != "cpu":
        return device
    return f"{threads} thread{'s' if threads != '1' else ''}"


def _power(found: "Calibration") -> Any:
    from rich.table import Table

    table = Table("speed", "noise", *(f"{count} rounds" for count in _ROUNDS), show_edge=False, pad_edge=False)
    for metric, slowdowns in _smallest(found).items():
        table.add_row(metric, f"{found.paired_noise.sd[metric]:.1%}", *(f"{slowdown:.1%}" for slowdown in slowdowns.values()))
    return table
