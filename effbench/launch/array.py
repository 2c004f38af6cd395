"""A run that a cluster measures: which elements it has, and what they record while the scheduler runs them."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from effbench.launch.fingerprint import Fingerprints
from effbench.launch.measured import Measured
from effbench.launch.schedule import Part, Turn, turns
from effbench.plan.plan import Plan
from effbench.plugin.catalog import Catalog
from effbench.plugin.cell import Cell
from effbench.plugin.launcher import Element, ElementState, Submission
from effbench.store.record import Record
from effbench.store.store import read_records

_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0
"""Between two looks. A shared folder and a scheduler have nothing to block on, and both are others' too: the longer it takes
already, the rarer they are asked."""


class Listener(Protocol):
    """Who is told how it goes on."""

    def planned(self, trials: int) -> None:
        """So many more trials are to run."""

    def started(self, cell: Cell, round_number: int) -> None:
        """The next record is this trial's."""

    def finished(self, record: Record) -> None:
        """A record has appeared."""

    def waiting(self, state: str) -> None:
        """How the elements fare."""


@dataclass
class ArrayRun:
    """The orchestrating side where the measuring is done elsewhere: it reads results of every machine, and writes none."""

    plan: Plan
    catalog: Catalog
    results: Path
    rounds: int
    retry_failed: bool = False

    def __post_init__(self) -> None:
        """Look at what is already there."""
        fingerprints = Fingerprints(self.plan, self.catalog)
        self._current = {cell.id: fingerprints.of(cell) for cell in self.plan.cells}
        self._seen = {file: file.stat().st_mtime_ns for file in self._files()}
        found = [read_records(folder) for folder in self.folders()]
        self.problems = [problem for result in found for problem in result.problems]
        records = [record for result in found for _, record in result.records]
        self._measured = Measured(self.plan, self._current, records, retry_failed=self.retry_failed)

    def folders(self) -> list[Path]:
        """This suite's results on each machine that has some."""
        machines = (file.parent for file in self.results.glob("*/machine.json"))
        return sorted(folder for machine in machines if (folder := machine / self.plan.suite.name).is_dir())

    def records(self) -> list[Record]:
        """Records of the plan's cells by the present code, on whatever machine."""
        found = (record for folder in self.folders() for _, record in read_records(folder).records)
        return [record for record in found if self._is_current(record)]

    def pending(self) -> dict[Part, list[Turn]]:
        """What each part of the run still has to measure, for the parts that have something to."""
        sizes = sorted({cell.world_size for cell in self.plan.cells})
        parts = (Part(number, size) for number in range(1, self.rounds + 1) for size in sizes)
        return {part: found for part in parts if (found := list(self._turns(part)))}

    def elements(self, arguments: Sequence[str]) -> list[Element]:
        """One for each pending part; `arguments` are those of the run as a whole."""
        return [
            Element(number, size, (*arguments, "--only-round", str(number), "--only-world-size", str(size)))
            for number, size in self.pending()
            if number is not None and size is not None
        ]

    def cores(self) -> int:
        """What the ranks of the largest cell need together."""
        return max((cell.threads * cell.world_size for cell in self.plan.cells), default=1)

    def watch(self, submission: Submission, listener: Listener) -> list[ElementState]:
        """Wait until every element has ended, and tell of each record as it appears."""
        started = time.monotonic()
        awaited = Counter((turn.cell.id, turn.round) for found in self.pending().values() for turn in found)
        while True:
            states = list(submission.look())
            for record in self._new_records():  # read after the states: what has ended has written all of its own
                self._tell(record, awaited, listener)
            if all(state.ended for state in states):
                return states
            listener.waiting(summary(states))
            time.sleep(min(_LONGEST_PAUSE_S, max(_SHORTEST_PAUSE_S, (time.monotonic() - started) / 10)))

    def _tell(self, record: Record, awaited: Counter[tuple[str, int]], listener: Listener) -> None:
        key = record.cell_id, record.round
        if not awaited[key]:
            listener.planned(1)  # a baseline once more, beside the rest of a part that was cut in two
        else:
            awaited[key] -= 1
        listener.started(record.cell, record.round)
        listener.finished(record)

    def _turns(self, part: Part) -> Iterator[Turn]:
        measured = self._measured
        return turns(self.plan, part.rounds(self.rounds), measured.sessions, part.cells(self.plan), measured.lost())

    def _new_records(self) -> Iterator[Record]:
        for file in self._files():
            written = file.stat().st_mtime_ns
            if self._seen.get(file) != written:
                self._seen[file] = written
                yield from (record for _, record in read_records(file).records if self._is_current(record))

    def _files(self) -> list[Path]:
        return [file for folder in self.folders() for file in sorted(folder.glob("[!.]*.json")) if file.name != "suite.json"]

    def _is_current(self, record: Record) -> bool:
        return record.fingerprint == self._current.get(record.cell_id)


def summary(states: Sequence[ElementState]) -> str:
    """How many elements are in which state, and why those that wait do."""
    count = Counter(state.word.lower() + (f" ({state.reason})" if state.reason else "") for state in states)
    return ", ".join(f"{number} {word}" for word, number in sorted(count.items()))
