"""`effbench verify`: whether records may stand on a shared board."""

import json
from pathlib import Path
from typing import Annotated

import typer


def verify(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A results folder, any folder within it, or one record.")],
    json_: Annotated[bool, typer.Option("--json", help="Every finding as JSON, not grouped.")] = False,
) -> None:
    """Check records before they are shared: schema, hashes, rounds, baselines, arithmetic from raw samples, copies.

    Examples: effbench verify results; effbench verify effbench-results/*/quick; effbench verify results --json

    Exit status: 0 no errors (there may be warnings), 1 errors, 2 bad input. docs/verifying.md lists every check.
    """
    from effbench.plugin.discovery import discover
    from effbench.verify.verify import verify as check

    report = check(path, discover())
    if json_:
        typer.echo(json.dumps(report.as_json(), indent=2))
    else:
        for line in report.lines():
            typer.echo(line)
    if report.count("error"):
        raise typer.Exit(1)
