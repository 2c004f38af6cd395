"""`effbench publish`: leaderboards in all formats, into a folder, a README and the Hugging Face Hub."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from effbench.cli.boards import ResultsArgument, boards_of
from effbench.plugin.errors import InputError

if TYPE_CHECKING:
    from effbench.board.leaderboard import Leaderboard
    from effbench.plugin.catalog import Catalog


def publish(
    path: ResultsArgument,
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="Where the files go.")],
    format_: Annotated[
        list[str] | None, typer.Option("--format", metavar="NAME", help="Only this format; may be repeated. Otherwise, all.")
    ] = None,
    readme: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Update its block from <!-- effbench:board --> to <!-- /effbench:board -->."),
    ] = None,
    readme_suite: Annotated[str | None, typer.Option(metavar="NAME", help="The suite that it shows; without, all.")] = None,
    readme_plot: Annotated[
        str | None, typer.Option(metavar="KIND", help="A plot below the table, by the end of its name, e.g. compression.")
    ] = None,
    hub: Annotated[str | None, typer.Option(metavar="ORG/NAME", help="Push a dataset to the Hugging Face Hub.")] = None,
    hub_private: Annotated[
        bool, typer.Option("--hub-private/--hub-public", help="Who sees it, where the dataset is new.")
    ] = True,
    hub_endpoint: Annotated[str | None, typer.Option(envvar="HF_ENDPOINT", hidden=True)] = None,
    unverified: Annotated[
        bool, typer.Option("--unverified", help="Even where `effbench verify` finds errors in the records.")
    ] = False,
    check: Annotated[bool, typer.Option("--check", help="Write nothing; exit with 1 where something is stale.")] = False,
) -> None:
    """Write the leaderboards of a results folder in every format, and remove what an earlier publish alone had written.

    Records in which `effbench verify` finds errors are not published.

    Examples: effbench publish results --to site; effbench publish results --to site --format markdown --format plots
    --readme README.md --readme-suite quick --readme-plot compression; effbench publish results --to site --check

    A dataset on the Hub, private unless --hub-public; the token comes from HF_TOKEN or `hf auth login`:
    effbench publish results --to site --hub ORG/NAME

    Exit status: 0 done, 1 with --check something is stale, 2 bad input.
    """
    from effbench.plugin.discovery import discover
    from effbench.publish.folder import Folder
    from effbench.publish.hub import Hub
    from effbench.publish.readme import updated

    if readme is None and (readme_suite or readme_plot):
        raise InputError("--readme-suite and --readme-plot say what --readme FILE shows: add it")
    if check and hub:
        raise InputError("--check writes nothing: leave out --hub")
    dataset = Hub(hub, hub_endpoint, private=hub_private) if hub else None  # a wrong name is told before the work
    folder, catalog = Folder(to), discover()
    if not unverified:
        _refuse_errors(path, catalog)
    boards = boards_of(path)
    if not boards:
        raise InputError(f"{path}: nothing to publish")
    files = _files(boards, catalog, format_)
    _refuse_among_records(path, to, files)
    page = updated(readme, _block(boards, catalog, files, (to, readme), (readme_suite, readme_plot))) if readme else None
    if check:
        changed = [f"{readme}: its block shows other results"] if page and page[0] != page[1] else []
        return _report_stale([*folder.stale(files), *changed])
    removed = folder.write(files)
    _index(to, files, removed)
    if readme and page and page[0] != page[1]:
        from effbench.store.store import write_atomic

        write_atomic(readme.resolve(), page[1])
        typer.echo(f"{readme}: block updated")
    if dataset:
        typer.echo(f"pushed: {dataset.push(files, boards)}")


def _refuse_errors(path: Path, catalog: "Catalog") -> None:
    from effbench.verify.verify import verify

    if errors := verify(path, catalog).count("error"):
        raise InputError(
            f"{path}: {errors} error{'s' if errors > 1 else ''} in the records, which `effbench verify {path}` names; "
            "--unverified publishes them all the same"
        )


def _refuse_among_records(path: Path, to: Path, files: dict[str, bytes]) -> None:
    """Within a results folder, JSON and Parquet are taken for records, by the next `effbench verify` for wrong ones."""
    alike = sorted(name for name in files if name.endswith((".json", ".parquet")))
    if alike and to.resolve().is_relative_to(path.resolve()):
        raise InputError(
            f"--to {to}: lies within {path}, where {', '.join(alike)} would be taken for records; "
            "give a folder beside it, or other formats by --format"
        )


def _files(boards: "list[Leaderboard]", catalog: "Catalog", formats: list[str] | None) -> dict[str, bytes]:
    """All formats' files by name; InputError where two formats write the same one."""
    files: dict[str, bytes] = {}
    writer: dict[str, str] = {}
    for name in dict.fromkeys(formats or catalog.reporters.names()):
        found = catalog.reporters.get(name)().files(boards)
        if twice := files.keys() & found.keys():
            file = min(twice)
            raise InputError(f"formats {writer[file]!r} and {name!r} both write {file}: choose one of them by --format")
        files |= found
        writer |= dict.fromkeys(found, name)
    return files


def _block(
    boards: "list[Leaderboard]",
    catalog: "Catalog",
    files: dict[str, bytes],
    where: tuple[Path, Path],
    shown: tuple[str | None, str | None],
) -> str:
    """Of one suite or all: the Markdown table and a plot."""
    from effbench.plugin.errors import unknown
    from effbench.publish.readme import block, plot_of

    suite, plot = shown
    chosen = [board for board in boards if suite in (None, board.suite)]
    if suite and not chosen:
        raise unknown("suite", suite, {board.suite for board in boards})
    table = catalog.text_reporter("markdown").render(chosen)
    image = plot_of(files, suite, plot) if plot else None
    return block(table, image, *where)


def _report_stale(stale: list[str]) -> None:
    for line in stale:
        typer.echo(line)
    if stale:
        typer.echo(f"{len(stale)} not up to date: run the same command without --check", err=True)
        raise typer.Exit(1)
    typer.echo("up to date")


def _index(to: Path, files: dict[str, bytes], removed: list[str]) -> None:
    """What was written: files by name, folders by how many are in them."""
    folders = Counter(name.partition("/")[0] for name in files if "/" in name)
    for name in sorted(name for name in files if "/" not in name):
        typer.echo(f"{to / name}  {len(files[name]):,} bytes")
    for folder, count in sorted(folders.items()):
        typer.echo(f"{to / folder}/  {count} files")
    for name in removed:
        typer.echo(f"removed {to / name}: no longer published")
