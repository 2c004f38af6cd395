"""`effbench calibrate`: what this machine can do, and which differences it can tell."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from effbench.store.calibration import Calibration

_ROUNDS = (3, 5, 10, 20)
_NOISE = {
    "train.tokens_per_s": "training",
    "infer.prefill_tokens_per_s": "prefill",
    "infer.decode_tokens_per_s": "decode",
}


def calibrate(
    rounds: Annotated[int, typer.Option(min=3, help="Rounds behind the noise.")] = 8,
    delta: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="The margin δ of a suite, within which stacks are the SAME.")
    ] = 0.03,
    as_json: Annotated[bool, typer.Option("--json", help="The figures as one object.")] = False,
) -> None:
    """Measure this machine's floor: clock, fixed cost of a trial, matmul peak, copy bandwidth, noise of a stack to itself.

    Says which slowdowns get a verdict in how many rounds. The peak is kept, and gives later trials their MFU. Takes a minute.

    Examples: effbench calibrate; effbench calibrate --rounds 20 --delta 0.01; effbench calibrate --json
    """
    from effbench.launch.calibrate import calibrate as measure
    from effbench.plugin.discovery import discover
    from effbench.store.calibration import write_calibration

    found = measure(discover(), rounds, lambda what: typer.echo(f"measuring {what}", err=True))
    file = write_calibration(found)
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
    else:
        for line in describe(found, delta):
            typer.echo(line)
        typer.echo(f"kept in {file}")


def describe(found: "Calibration", delta: float) -> list[str]:
    """The figures as lines of text."""
    lines = [
        f"machine          {found.machine}, torch {found.torch}",
        f"clock            steps of {1e9 * found.timer.resolution_s:.0f} ns, {1e9 * found.timer.cost_s:.0f} ns a reading",
        f"fixed cost       {1e3 * found.empty_trial_s:.0f} ms for a whole trial with one step and one token",
    ]
    for name, rate in found.matmul_flops_per_s.items():
        lines.append(f"matmul peak      {rate / 1e9:,.1f} GFLOP/s   {_place(name)}")
    for name, rate in found.copy_bytes_per_s.items():
        lines.append(f"copy bandwidth   {rate / 1e9:,.1f} GB/s   {_place(name)}")
    header = "".join(f"{f'{n} rounds':>12}" for n in _ROUNDS)
    lines += ["", f"smallest slowdown that is called SLOWER in 90 % of runs, δ = {delta:.0%}:", f"{'':<10}{'noise':>8}{header}"]
    for metric, name in _NOISE.items():
        if (sd := found.paired_noise.sd.get(metric)) is not None:
            lines.append(f"{name:<10}{sd:>8.1%}{''.join(_slowdown(sd, n, delta) for n in _ROUNDS)}")
    noise = found.paired_noise
    lines.append(f"(noise: standard deviation of a stack's per-round ratio to itself, over {noise.rounds} rounds)")
    if noise.disturbed:
        lines.append(
            f"other programs disturbed {noise.disturbed} of {2 * noise.rounds} trials: this is the machine as it is now"
        )
    return lines


def _slowdown(noise: float, rounds: int, delta: float) -> str:
    from effbench.board.power import smallest_slowdown

    found = smallest_slowdown(noise, rounds, delta)
    return f"{'–' if found is None else f'{found:.1%}':>12}"


def _place(name: str) -> str:
    device, *dtype, threads = name.split()
    return " ".join([device, *dtype, *([f"{threads} thread{'s' if threads != '1' else ''}"] if device == "cpu" else [])])
