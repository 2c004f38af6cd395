"""How a run shows that it goes on: a live display on a terminal, one plain line per trial otherwise."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from effbench.plugin.cell import Cell
from effbench.store.record import Record

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class PlainProgress:
    """One line per trial."""

    def __init__(self, total: int, stream: TextIO) -> None:
        self._total, self._stream, self._count, self._state = total, stream, 0, ""

    def planned(self, trials: int) -> None:
        """Count them."""
        self._total += trials

    def started(self, cell: Cell, round_number: int) -> None:
        """Nothing: the line comes when the trial ends."""

    def phase(self, name: str) -> None:
        """Nothing."""

    def repeated(self, reason: str) -> None:
        """Say why it takes longer."""
        self._stream.write(f"  disturbed, once more: {reason}\n")

    def waiting(self, state: str) -> None:
        """Say how what others run fares, when that has changed."""
        if state != self._state:
            self._stream.write(f"  {state}\n")
            self._stream.flush()
        self._state = state

    def finished(self, record: Record) -> None:
        """Print the trial's line."""
        self._count += 1
        self._stream.write(f"[{self._count}/{self._total}] round {record.round} {describe(record.cell)}: {outcome(record)}\n")
        self._stream.flush()


class LiveProgress:
    """A bar with the cell, its phase, how many are done, and the time left."""

    def __init__(self, total: int, progress: "Progress", left: "Callable[[], float | None]") -> None:
        self._progress, self._total, self._left = progress, total, left
        self._task: TaskID = progress.add_task("starting the worker", total=total)
        self._cell = ""

    def planned(self, trials: int) -> None:
        """Make the bar longer."""
        self._total += trials
        self._progress.update(self._task, total=self._total)

    def started(self, cell: Cell, round_number: int) -> None:
        """Show the cell, and the budget where there is one."""
        left = self._left()
        budget = "" if left is None else f"[{max(0, left) / 60:.1f} min of the budget left] "
        self._cell = f"{budget}round {round_number} {describe(cell)}"
        self._progress.update(self._task, description=self._cell)

    def phase(self, name: str) -> None:
        """Show the phase."""
        self._progress.update(self._task, description=f"{self._cell}: {name}")

    def repeated(self, reason: str) -> None:
        """Leave the reason on the screen."""
        self._progress.console.print(f"{self._cell}: disturbed, once more: {reason}", markup=False, highlight=False)

    def waiting(self, state: str) -> None:
        """Show how what others run fares."""
        self._progress.update(self._task, description=state)

    def finished(self, record: Record) -> None:
        """Advance; what went wrong stays on the screen above the bar."""
        if record.status != "ok":
            self._progress.console.print(f"{self._cell}: {outcome(record)}", markup=False, highlight=False)
        self._progress.advance(self._task)


@contextmanager
def progress_for(total: int, stream: TextIO, left: "Callable[[], float | None]") -> Iterator[PlainProgress | LiveProgress]:
    """The right display for where the output goes."""
    if not stream.isatty():
        yield PlainProgress(total, stream)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    text = TextColumn("{task.description}", markup=False)
    # Two refreshes a second: the display shares the cores with what is measured.
    columns = (text, BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=stream), refresh_per_second=2) as progress:
        yield LiveProgress(total, progress, left)


def describe(cell: Cell) -> str:
    """A cell in a few words."""
    options = "".join(f" {key}={value}" for key, value in cell.option_axes.items())
    world = f" × {cell.world_size} ranks" if cell.world_size > 1 else ""
    return f"{cell.stack}{options} on {cell.model}, {cell.workload}, {cell.batch_size} × {cell.seq_len} tokens{world}"


def outcome(record: Record) -> str:
    """How a trial ended, in one line."""
    if record.status == "skipped":
        return f"skipped: {record.headline}"
    disturbed = f", disturbed: {record.dirty}" if record.dirty else ""
    return f"{record.status} in {record.wall_s:.1f} s{disturbed}" + (f": {record.headline}" if record.error else "")
