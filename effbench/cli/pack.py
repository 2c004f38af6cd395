"""`effbench pack` and `effbench unpack`: trials of older rounds as one file for each folder, and back."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from effbench.store.pack import Done

_Path = Annotated[Path, typer.Argument(metavar="PATH", help="A results folder, or any folder within it.")]


def pack(
    path: _Path,
    before_round: Annotated[
        int | None, typer.Option("--before-round", metavar="N", min=1, help="Only rounds 1 to N - 1; otherwise all.")
    ] = None,
) -> None:
    """Pack records and their samples into one Parquet file for each folder, and remove the packed files.

    Everything that reads results reads packed ones too; `effbench unpack` gives the very same files again.

    Examples: effbench pack effbench-results --before-round 4; effbench pack effbench-results/MACHINE/quick
    """
    from effbench.store.pack import pack as pack_files

    _tell(pack_files(path, before_round), f"effbench: no trial to pack below {path}", "packed into")


def unpack(path: _Path) -> None:
    """Put packed records and samples back as the files they were, and remove the packs.

    Example: effbench unpack effbench-results
    """
    from effbench.store.pack import unpack as unpack_files

    _tell(unpack_files(path), f"effbench: nothing packed below {path}", "unpacked from")


def _tell(done: "Iterable[Done]", nothing: str, verb: str) -> None:
    """A line for each pack as it is done; exit status 1 where something was left as it is."""
    count = problems = 0
    for each in done:
        for problem in each.problems:
            typer.echo(f"effbench: {problem}", err=True)
        if each.trials:
            sizes = f"{each.loose_bytes / 2**20:.1f} MiB of files, {each.packed_bytes / 2**20:.1f} MiB packed"
            typer.echo(f"{each.trials} trials {verb} {each.file} ({sizes})")
        count, problems = count + each.trials, problems + len(each.problems)
    if not count:
        typer.echo(nothing, err=True)
    if problems:
        raise typer.Exit(1)
