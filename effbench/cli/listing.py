"""`effbench list`: everything a suite can name."""

import inspect
import json
from collections.abc import Callable
from importlib import metadata
from typing import TYPE_CHECKING, Annotated, Any

import typer

from effbench.cli.options import PluginOption
from effbench.plugin.errors import unknown

if TYPE_CHECKING:
    from effbench.plugin.catalog import Catalog

Row = dict[str, Any]
KINDS = ("techniques", "models", "workloads", "meters", "launchers", "reporters", "suites", "plugins")


def list_(
    kind: Annotated[str | None, typer.Argument(metavar="KIND", help=f"{', '.join(KINDS)}; all of them when left out.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A list of objects.")] = False,
    plugin: PluginOption = None,
) -> None:
    """List what a suite can name.

    Examples: effbench list techniques; effbench list techniques --json; effbench list plugins --plugin mine.py
    """
    from effbench.plugin.discovery import discover

    if kind is not None and kind not in _KINDS:
        raise unknown("kind", kind, _KINDS)
    catalog = discover(plugin or ())
    rows = {name: _KINDS[name](catalog) for name in ([kind] if kind else _KINDS)}
    if as_json:
        listed = rows[kind] if kind else [{"kind": name, **row} for name, group in rows.items() for row in group]
        typer.echo(json.dumps(listed, indent=2))
    else:
        _print(rows)


def _print(groups: dict[str, list[Row]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    for kind, rows in groups.items():
        table = Table(title=kind, title_justify="left", show_edge=False, pad_edge=False)
        shown = [key for key in (rows[0] if rows else ()) if key not in ("options", "provides", "requires", "plugin", "note")]
        for key in shown:
            table.add_column(key, overflow="fold")
        for row in rows:
            table.add_row(*(escape(_cell(row[key])) for key in shown))
        console.print(table, "")


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)


def _techniques(catalog: "Catalog") -> list[Row]:
    rows = []
    for name in catalog.techniques.names():
        technique = catalog.techniques.get(name)
        missing = [library for library in technique.requires if not _installed(library)]
        properties = technique.model_json_schema().get("properties", {})
        rows.append(
            {
                "name": name,
                "family": technique.family,
                "summary": _summary(technique),
                "options": properties,
                "requires": list(technique.requires),
                "available": not missing,
                "plugin": catalog.techniques.plugin_of(name),
            }
        )
    return rows


def _meters(catalog: "Catalog") -> list[Row]:
    return [
        {"name": metric.name, "unit": metric.unit, "better": metric.direction, "summary": metric.definition, "meter": name}
        for name in catalog.meters.names()
        for metric in catalog.meters.get(name).metrics
    ]


def _suites(catalog: "Catalog") -> list[Row]:
    from effbench.plan.suite import read_suite, standard_suites

    rows = []
    for file in standard_suites():
        suite = read_suite(file)
        rows.append({"name": file.stem, "models": suite.models, "workloads": suite.workloads, "stacks": list(suite.stacks)})
    return rows


def _plugins(catalog: "Catalog") -> list[Row]:
    return [
        {
            "name": info.name,
            "source": info.source,
            "version": info.version,
            "provides": info.provides,
            "problem": info.problem,
            "note": "imports torch at its top: slow to list" if info.imports_torch else "",
        }
        for info in catalog.plugins
    ]


def _named(registry: str) -> "Callable[[Catalog], list[Row]]":
    def rows(catalog: "Catalog") -> list[Row]:
        found = getattr(catalog, registry)
        return [{"name": n, "summary": _summary(found.get(n)), "plugin": found.plugin_of(n)} for n in found.names()]

    return rows


_KINDS: "dict[str, Callable[[Catalog], list[Row]]]" = {
    "techniques": _techniques,
    "models": _named("models"),
    "workloads": _named("workloads"),
    "meters": _meters,
    "launchers": _named("launchers"),
    "reporters": _named("reporters"),
    "suites": _suites,
    "plugins": _plugins,
}


def _summary(thing: type) -> str:
    return (inspect.getdoc(thing) or "").partition("\n")[0]


def _installed(library: str) -> bool:
    try:
        metadata.version(library)
    except metadata.PackageNotFoundError:
        return False
    return True
