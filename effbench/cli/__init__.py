"""The command line: one file per command, each importing what it needs when it runs."""

import sys

import typer

from effbench.cli import (
    board,
    calibrate,
    claims,
    compare,
    doctor,
    estimate,
    join,
    listing,
    pack,
    pareto,
    plan,
    profile,
    publish,
    run,
    tune,
    verify,
)
from effbench.plugin.errors import InputError
from effbench.plugin.text import clean

app = typer.Typer(
    name="effbench",
    help="Does an efficiency technique help, on this model, on this machine, and at what cost in quality?",
    epilog="Start with: effbench run quick",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
_COMMANDS = (
    run.run,
    board.board,
    compare.compare,
    claims.claims,
    pareto.pareto,
    verify.verify,
    publish.publish,
    pack.pack,
    pack.unpack,
    listing.list_,
    plan.plan,
    estimate.estimate,
    doctor.doctor,
    calibrate.calibrate,
    profile.profile,
    tune.tune,
    join.join,
)
for command in _COMMANDS:
    app.command(name=command.__name__.rstrip("_"))(command)


def main() -> None:
    """Run a command; bad input is one line on stderr and exit status 2."""
    try:
        app()
    except InputError as error:
        # A message may quote a record; a suite's mistakes are a line each.
        sys.stderr.write("effbench: " + "\n".join(map(clean, str(error).splitlines())) + "\n")
        sys.exit(2)
