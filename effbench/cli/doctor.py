"""`effbench doctor`: what this machine can and cannot measure."""

from importlib import metadata
from pathlib import Path

import typer


def doctor() -> None:
    """Say what this machine can measure, what it cannot, and the pip line that would add it.

    Example: effbench doctor
    """
    from effbench.plugin.discovery import discover
    from effbench.store.calibration import read_calibration
    from effbench.store.machine import this_machine

    machine = this_machine()
    typer.echo(f"machine    {machine.slug}: {machine.cpu}, {machine.cores} cores, {machine.memory_gib} GiB")
    typer.echo(f"GPUs       {', '.join(machine.gpus) or 'none: everything runs on the CPU'}")
    for library in ("torch", "transformers", "peft"):
        typer.echo(f"{library:<10} {_version(library) or f'missing: pip install {library}'}")
    peak = Path("/proc/self/clear_refs").exists()
    typer.echo(f"memory     {'peak per phase' if peak or machine.gpus else 'not measured: needs Linux or CUDA'}")
    if machine.gpus:
        for what, library, extra in (("GPU state", "nvidia-ml-py", "gpu"), ("energy", "zeus", "energy")):
            otherwise = f"not measured: pip install 'effbench[{extra}]'"
            typer.echo(f"{what:<10} {'ready' if _version(library) else otherwise}")
    calibration = read_calibration()
    made = f"of {calibration.measured_at[:10]}" if calibration else "none, so no MFU: `effbench calibrate` makes one"
    typer.echo(f"calibration {made}")
    for info in (catalog := discover()).plugins:
        if info.problem:
            typer.echo(f"plugin     {info.name} is broken: {info.problem}")
    for name in catalog.techniques.names():
        missing = [library for library in catalog.techniques.get(name).requires if not _version(library)]
        typer.echo(f"technique  {name}: {'ready' if not missing else 'pip install ' + ' '.join(missing)}")


def _version(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None
