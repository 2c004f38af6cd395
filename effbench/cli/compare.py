"""`effbench compare`: two sets of records, cell by cell."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from effbench.cli.boards import warnings_told
from effbench.plugin.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from effbench.board.compare import Comparison

_FORMATS = ("table", "markdown", "json", "csv")
_PERCENTAGE = re.compile(r"(\d{1,3}(?:\.\d+)?) ?%|(0?\.\d+|0)", re.ASCII)


def compare(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="A results folder, any folder within it, or one record's file.")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="The same of what is compared with it.")],
    fail_on_slower: Annotated[
        str | None,
        typer.Option(metavar="MARGIN", help="Exit with 1 if a speed fell by more than this (5% or 0.05), or a cell fails now."),
    ] = None,
    fail_on_worse: Annotated[
        str | None,
        typer.Option(metavar="MARGIN", help="Exit with 1 if a score is worse by more than this, or a cell fails now."),
    ] = None,
    relative: Annotated[
        bool, typer.Option("--relative", help="Compare speedups over each side's own baseline, without the machine's drift.")
    ] = False,
    format_: Annotated[
        str, typer.Option("--format", help="table, markdown (for a pull request's comment), json or csv.")
    ] = "table",
) -> None:
    """Compare two sets of records: what became slower, larger or worse, or fails now.

    Nothing fails on noise of rounds: the adjusted interval must lie wholly beyond the margin (docs/comparing.md).

    Examples: effbench compare results-main results-branch; effbench compare results-main results-branch --relative
    --fail-on-slower 5% --fail-on-worse 1% --format markdown
    """
    from effbench.board.compare import Margins, compare_frames
    from effbench.cli.comparison_text import RENDER

    if format_ not in _FORMATS:
        raise InputError(f"--format {format_}: not one of {', '.join(_FORMATS)}")
    given = {"speed": fraction("--fail-on-slower", fail_on_slower), "quality": fraction("--fail-on-worse", fail_on_worse)}
    margins = Margins(**{name: margin for name, margin in given.items() if margin is not None})
    with warnings_told():
        found = compare_frames(_load(old), _load(new), margins, relative=relative)
    typer.echo(RENDER[format_](found))
    if all(margin is None for margin in given.values()):
        return
    if failures := _failures(found, slower=given["speed"] is not None, worse=given["quality"] is not None):
        typer.echo(f"effbench: regressions: {', '.join(failures)}", err=True)
        raise typer.Exit(1)
    if not found.compared:
        raise InputError(f"{old} and {new} have no cell that can be compared, so nothing was checked")


def fraction(option: str, text: str | None) -> float | None:
    """`5%` or `0.05` as 0.05; InputError for all that could be read in two ways."""
    if text is None:
        return None
    found = _PERCENTAGE.fullmatch(text.strip())
    if not found:
        raise InputError(f"{option} {text}: expected a percentage such as 5%, or a fraction below 1 such as 0.05")
    return float(found[1]) / 100 if found[1] else float(found[2])


def _load(path: Path) -> "pd.DataFrame":
    from effbench.board.frame import load

    frame = load(path)
    if frame.empty:
        raise InputError(f"{path}: no trial records there")
    return frame


def _failures(found: "Comparison", *, slower: bool, worse: bool) -> list[str]:
    from effbench.board.compare import FAILS
    from effbench.board.verdict import QUALITY, SPEED

    words = [FAILS, *([SPEED.bad] if slower else []), *([QUALITY.bad] if worse else [])]
    return [f"{found.verdicts[word]} {word}" for word in words if found.verdicts[word]]
