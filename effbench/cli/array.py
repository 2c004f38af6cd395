"""The submitting side of `effbench run`, where a launcher hands the run to a cluster."""

import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import typer

from effbench.cli.options import overrides, refuse_unsupported
from effbench.cli.progress import progress_for
from effbench.cli.run import report_failures, show
from effbench.launch.array import ArrayRun
from effbench.plan.plan import plan
from effbench.plan.suite import find_suite, read_suite

if TYPE_CHECKING:
    from effbench.plan.plan import Plan
    from effbench.plugin.catalog import Catalog
    from effbench.plugin.launcher import ArrayLauncher, Element, ElementState

_FOLDER = ".array"


class Asked(NamedTuple):
    """What the command line says of the run; its elements are asked the same."""

    suite: str
    results: Path
    plugins: list[Path] | None
    stacks: list[str] | None
    settings: list[str] | None
    retry_failed: bool

    def arguments(self) -> list[str]:
        """Of the `effbench` that runs an element."""
        flags = {"--plugin": self.plugins, "--stack": self.stacks, "--set": self.settings}
        repeated = [text for flag, values in flags.items() for value in values or () for text in (flag, str(value))]
        retry = ["--retry-failed"] if self.retry_failed else []
        return ["run", self.suite, "--results", str(self.results), *repeated, *retry]


def run_array(launcher: "ArrayLauncher", catalog: "Catalog", asked: Asked, rounds: int) -> None:
    """Submit what is missing, watch it, and show the leaderboards of the machines that measured it."""
    asked, planned = _planned(launcher, catalog, asked)
    refuse_unsupported(planned, launcher)
    session = ArrayRun(planned, catalog, asked.results, rounds, asked.retry_failed)
    elements = session.elements(asked.arguments())
    _announce(session, len(elements))
    died, interrupted = 0, False
    if elements:
        try:
            died = _submitted(launcher, session, elements)
        except KeyboardInterrupt:
            interrupted = True
    for folder in session.folders():
        show(folder, session.results)
    failed = report_failures(session.records())
    if interrupted:
        typer.echo("stopped, and what was submitted is cancelled; the same command continues where it stopped", err=True)
        raise typer.Exit(130)
    if died or failed:
        raise typer.Exit(1)


def _planned(launcher: "ArrayLauncher", catalog: "Catalog", asked: Asked) -> "tuple[Asked, Plan]":
    """The plan of a suite on the cluster's machines, which may have GPUs where this one has none, or the other way round."""
    file, stacks = find_suite(asked.suite), tuple(asked.stacks or ())
    suite = read_suite(file, overrides(asked.settings))
    if suite.device == "auto":
        asked = asked._replace(settings=[*(asked.settings or ()), f"device={launcher.device}"])
        suite = read_suite(file, overrides(asked.settings))
    return asked, plan(suite, catalog, stacks)


def _announce(session: ArrayRun, elements: int) -> None:
    for problem in session.problems:
        typer.echo(f"effbench: {problem}", err=True)
    for reason, count in session.plan.skip_reasons():
        typer.echo(f"skipped: {count} cells: {reason}", err=True)
    for note in session.plan.notes:
        typer.echo(f"note: {note}", err=True)
    trials = sum(map(len, session.pending().values()))
    where = f", in {elements} array elements of one round and world size each" if elements else ""
    typer.echo(
        f"{session.plan.suite.name}: {len(session.plan.cells)} cells, {session.rounds} rounds, {trials} trials to run{where}"
    )


def _submitted(launcher: "ArrayLauncher", session: ArrayRun, elements: "Sequence[Element]") -> int:
    """Submit, and watch until all have ended. How many died; at a Ctrl-C, all that is left is cancelled first."""
    with _terminated_like_ctrl_c(), _private_folder(session.results) as folder:
        submission = launcher.submit(elements, session.plan.suite.name, folder, session.cores())
        trials = sum(map(len, session.pending().values()))
        try:
            with progress_for(trials, sys.stdout, lambda: None) as progress:
                states = session.watch(submission, progress)
        except BaseException:
            submission.cancel()
            raise
        dead = [(element, state) for element, state in zip(elements, states, strict=True) if state.died]
        for element, state in dead:
            typer.echo(_obituary(element, state, submission.last_words(state.job)), err=True)
        return len(dead)


def _obituary(element: "Element", state: "ElementState", last_words: str) -> str:
    part = f"round {element.round}, world size {element.world_size}"
    return f"job {state.job} ({part}) ended as {state.word}: {last_words}; the same command measures what it left"


@contextmanager
def _private_folder(results: Path) -> Iterator[Path]:
    """A folder beside the records, which every machine sees, for what a submission needs while it lives."""
    parent = results / _FOLDER
    parent.mkdir(parents=True, exist_ok=True)
    (parent / ".gitignore").write_text("*\n")
    folder = Path(tempfile.mkdtemp(dir=parent))  # readable and writable by its owner alone
    try:
        yield folder.absolute()
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # a cancelled element may still write its last words


@contextmanager
def _terminated_like_ctrl_c() -> Iterator[None]:
    """SIGTERM must not leave a cluster at work for nobody."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
