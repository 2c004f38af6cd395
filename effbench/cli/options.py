"""Options that several commands share."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from effbench.plugin.errors import InputError

if TYPE_CHECKING:
    from effbench.launch.requests import Sources
    from effbench.plan.plan import Plan
    from effbench.plugin.catalog import Catalog
    from effbench.plugin.launcher import AnyLauncher, Launcher

SuiteArgument = Annotated[str, typer.Argument(metavar="SUITE", help="A suite's TOML file, or the name of a standard suite.")]
PluginOption = Annotated[
    list[Path] | None, typer.Option("--plugin", metavar="FILE.py", help="Load one more plugin; may be repeated.")
]
StackOption = Annotated[
    list[str] | None, typer.Option("--stack", metavar="NAME", help="Only this stack and the baseline; may be repeated.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, e.g. training.steps=4 or axes.seq_len=[64]."),
]
ResultsOption = Annotated[Path, typer.Option("--results", metavar="DIR", help="Where records are kept.")]


def prepare(
    suite: str, plugins: list[Path] | None, stacks: list[str] | None, settings: list[str] | None
) -> "tuple[Plan, Catalog, Sources]":
    """Read the suite, find all plugins, and plan."""
    from effbench.plan.plan import plan
    from effbench.plan.suite import find_suite, read_suite

    file = find_suite(suite)
    catalog, sources = find_plugins(plugins, file.parent / "plugins")
    return plan(read_suite(file, overrides(settings)), catalog, tuple(stacks or ())), catalog, sources


def find_plugins(files: list[Path] | None, folder: Path | None = None) -> "tuple[Catalog, Sources]":
    """All plugins, those in the folder among them if it is there; the broken ones are named on stderr."""
    from effbench.launch.requests import Sources
    from effbench.plugin.discovery import discover

    sources = Sources(tuple(files or ()), (folder,) if folder and folder.is_dir() else ())
    catalog = discover(sources.files, sources.folders)
    for info in catalog.plugins:
        if info.problem:
            typer.echo(f"effbench: plugin {info.name} is not used: {info.problem}", err=True)
    return catalog, sources


def launcher_for(planned: "Plan", catalog: "Catalog", name: str, options: dict[str, Any]) -> "Launcher":
    """The launcher with the options that were given; InputError where it cannot start what the plan needs."""
    launcher = catalog.launcher(name, options)
    refuse_unsupported(planned, launcher)
    return launcher


def refuse_unsupported(planned: "Plan", launcher: "AnyLauncher") -> None:
    """InputError where a launcher cannot start what the plan needs."""
    for size in sorted({cell.world_size for cell in planned.cells}):
        if reason := launcher.unsupported(size):
            raise InputError(f"launcher {launcher.name}: {reason}")


def overrides(settings: list[str] | None) -> dict[str, str]:
    """`["a.b=1"]` as a mapping; InputError where there is no `=`."""
    found = {}
    for setting in settings or ():
        key, separator, value = setting.partition("=")
        if not separator or not key:
            raise InputError(f"--set {setting}: expected KEY=VALUE, for instance --set training.steps=4")
        found[key.strip()] = value.strip()
    return found


def flags_and_values(options: list[str]) -> dict[str, str | bool]:
    """`["a=1", "b", "c=no"]` as a mapping: what has no value is a flag, and `no` takes one away."""
    parts = (option.partition("=") for option in options)
    return {key.strip(): value.strip() != "no" and value.strip() if separator else True for key, separator, value in parts}
