"""Runs a plan: rounds in shuffled order, one trial at a time, each written as soon as it ends."""

import secrets
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from effbench.launch.answer import Answer
from effbench.launch.budget import Budget
from effbench.launch.conditions import Watch, dirty_reason
from effbench.launch.fingerprint import Fingerprints
from effbench.launch.measured import Measured
from effbench.launch.requests import Sources, seed_of, start_message, timeout_s, trial_request
from effbench.launch.schedule import WHOLE, Part, Turn, turns
from effbench.launch.worker import Worker
from effbench.plan.plan import Plan
from effbench.plugin.catalog import Catalog
from effbench.plugin.cell import Cell
from effbench.plugin.launcher import Launcher
from effbench.store.machine import this_machine
from effbench.store.record import Fingerprint, Record, Status
from effbench.store.store import Store


class Listener(Protocol):
    """Who is told how a run goes on."""

    def planned(self, trials: int) -> None:
        """So many more trials are to run."""

    def started(self, cell: Cell, round_number: int) -> None:
        """A trial begins."""

    def phase(self, name: str) -> None:
        """The trial enters a phase."""

    def repeated(self, reason: str) -> None:
        """Something disturbed the trial; it is run again."""

    def finished(self, record: Record) -> None:
        """The trial's record is written."""


class FurtherRounds(Protocol):
    """Decides which cells go on after the rounds that were asked for."""

    def __call__(self, rounds: int) -> tuple[int, Collection[str]] | None:
        """The number of rounds to go on to and the ids of the cells that do, after so many rounds; None to stop."""


@dataclass
class Run:
    """One session of a suite. `pending` says what is missing; `execute` measures it."""

    plan: Plan
    catalog: Catalog
    sources: Sources
    results: Path
    rounds: int
    launcher: Launcher
    retry_failed: bool = False
    part: Part = WHOLE
    session: str = field(default_factory=lambda: secrets.token_hex(6))

    def __post_init__(self) -> None:
        """Open the store and look at what is already there."""
        self.store = Store(self.results, this_machine(), self.plan.suite.name)
        self.store.open(self.plan.labelled_suite())
        self._fingerprints = Fingerprints(self.plan, self.catalog)
        found = self.store.read()
        self.problems = found.problems
        self._current = {cell.id: self._fingerprints.of(cell) for cell in self.plan.cells}
        records = [record for _, record in found.records]
        self.measured = Measured(self.plan, self._current, records, retry_failed=self.retry_failed)
        self._across_ranks = {metric.name: metric.across_ranks for metric in self.catalog.metrics().values()}
        self._git = _git_state(Path.cwd(), self.results)
        self._workers: dict[int, Worker] = {}

    def pending(self) -> list[Turn]:
        """What has no current record, in the order it will run."""
        return list(self._turns(self.part.rounds(self.rounds), self.part.cells(self.plan)))

    def records(self) -> list[Record]:
        """Records of the plan's cells by the present code."""
        found = (record for _, record in self.store.read().records)
        return [record for record in found if record.fingerprint == self._current.get(record.cell_id)]

    def execute(self, listener: Listener, budget: Budget | None = None, further: FurtherRounds | None = None) -> list[Turn]:
        """Measure what is pending, then `further` rounds; returns what the budget left unmeasured."""
        self._write_skips()
        limit = budget or Budget()
        limit.learn(self.measured.seconds)
        try:
            left = self._measure(self.pending(), listener, limit)
            rounds = self.rounds
            while not left and further and (chosen := further(rounds)):
                following = range(rounds + 1, chosen[0] + 1)
                more = list(self._turns(following, chosen[1]))
                listener.planned(len(more))
                left = self._measure(more, listener, limit)
                rounds = chosen[0]
        finally:
            for worker in self._workers.values():
                worker.close()
            self.launcher.close()
        return left

    def _turns(self, rounds: range, only: Collection[str] | None = None) -> Iterator[Turn]:
        return turns(self.plan, rounds, self.measured.sessions, only, self.measured.lost())

    def _measure(self, pending: list[Turn], listener: Listener, budget: Budget) -> list[Turn]:
        """Run trials until none is pending or, after the first round, the budget allows no more; returns those left."""
        for index, turn in enumerate(pending):
            lost = self.measured.out_of_memory.reason(turn.cell)
            if not lost and turn.round > 1 and not budget.allows(turn.cell.id, warm=turn.cell.world_size in self._workers):
                return pending[index:]
            listener.started(turn.cell, turn.round)
            record = self._skip(turn, lost) if lost else self._trial(turn, listener, budget)
            self.measured.sessions[record.cell_id, record.round].add(record.session)
            if record.status == "oom":
                self.measured.out_of_memory.add(turn.cell)
            if not lost:
                budget.learn({record.cell_id: record.wall_s})
            listener.finished(record)
        return []

    def _write_skips(self) -> None:
        """Record what the plan skips; what was measured under another limit stays as it is."""
        measured: dict[str, list[Fingerprint]] = defaultdict(list)
        for _, earlier in self.store.read().records:
            if earlier.status in ("ok", "oom"):
                measured[earlier.cell_id].append(earlier.fingerprint)
        for skip in self.plan.skips:
            record = self._record(skip.cell, 1, _skipped(skip.reason))
            if record.fingerprint not in measured[record.cell_id]:
                self.store.write(record, None)

    def _skip(self, turn: Turn, reason: str) -> Record:
        return self.store.write(self._record(turn.cell, turn.round, _skipped(reason)), None, beside=turn.again)

    def _worker(self, world_size: int) -> Worker:
        """The warm worker of a world size; each stays warm beside the others."""
        if world_size not in self._workers:
            cells = [cell for cell in self.plan.cells if cell.world_size == world_size]
            start = start_message(self.plan, self.catalog, self.sources, cells)
            self._workers[world_size] = Worker(self.launcher, world_size, start, self._across_ranks)
        return self._workers[world_size]

    def _trial(self, turn: Turn, listener: Listener, budget: Budget) -> Record:
        """One trial, repeated while something disturbs it; the last attempt is the record."""
        worker = self._worker(turn.cell.world_size)
        worker.start()  # not a part of any trial's time
        attempts = 1 + self.plan.suite.limits.dirty_repeats
        for attempt in range(1, attempts + 1):
            found, samples = self._attempt(worker, turn, listener.phase)
            dirty = found["dirty"]
            fits = attempt < attempts and budget.allows(turn.cell.id, warm=True)
            if not dirty or found["status"] != "ok" or not fits:
                break
            listener.repeated(dirty)
        record = self._record(turn.cell, turn.round, found | {"attempt": attempt})
        return self.store.write(record, samples, beside=turn.again)

    def _attempt(
        self, worker: Worker, turn: Turn, on_phase: Callable[[str], None]
    ) -> tuple[dict[str, Any], dict[str, Any] | None]:
        cell, limit = turn.cell, timeout_s(self.plan, turn.cell, self.catalog)
        request = trial_request(self.plan, cell, turn.round)
        watch = Watch(cell.threads * cell.world_size, gpus=cell.world_size if cell.device == "cuda" else 0)
        started = time.monotonic()
        answer = worker.run(request, limit, on_phase)
        wall = round(time.monotonic() - started, 4)
        conditions = watch.conditions()
        found, samples = findings(answer, limit)
        return found | {"wall_s": wall, "conditions": conditions, "dirty": dirty_reason(conditions)}, samples

    def _record(self, cell: Cell, number: int, found: dict[str, Any]) -> Record:
        return Record(
            cell_id=cell.id,
            cell=cell,
            round=number,
            session=self.session,
            seed=seed_of(self.plan.suite, number),
            fingerprint=self._current.get(cell.id) or self._fingerprints.of(cell),
            machine=this_machine().slug,
            plugins={name: self.catalog.techniques.plugin_of(name) for name, _ in cell.techniques},
            git=self._git,
            leaks=self._leak(cell),
            **found,
        )

    def _leak(self, cell: Cell) -> str | None:
        techniques = (self.catalog.technique(name, options) for name, options in cell.techniques)
        return next((reason for technique in techniques if (reason := technique.leaks(cell))), None)


def _skipped(reason: str) -> dict[str, Any]:
    return {"status": "skipped", "error": reason, "wall_s": 0.0}


def rounds_of(records: Iterable[Record], cells: Iterable[Cell]) -> tuple[int, int]:
    """Fewest and most rounds that the cells have good records of."""
    counts = {cell.id: 0 for cell in cells}
    for cell_id, _ in {(record.cell_id, record.round) for record in records if record.status == "ok"}:
        counts[cell_id] += 1
    return min(counts.values(), default=0), max(counts.values(), default=0)


def findings(answer: Answer, timeout_s: float) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The fields of a record that the trial itself decides, and its raw samples."""
    if answer.outcome is None:
        status, error = _death(answer, timeout_s)
        return {"status": status, "error": scrubbed(error), "failing_rank": answer.rank}, None
    found = answer.outcome | {"failing_rank": answer.rank}
    samples = found.pop("samples")
    if found["error"]:
        found["error"] = scrubbed(found["error"])
    if found["quality"] is not None and "scores" not in found["quality"]:
        found["quality"] = None  # only the untrained model was evaluated; its score is not the trial's
    return found, samples


def _death(answer: Answer, timeout_s: float) -> tuple[Status, str]:
    where = f"in phase {answer.phase}" if answer.phase else "before its first phase"
    log = f"\n{answer.log.strip()}" if answer.log.strip() else ""
    reason = answer.ended.get("reason") or ""
    if answer.timed_out:
        return "timeout", f"killed after {timeout_s:g} s {where}{log}"
    if reason.startswith("oom"):
        return "oom", f"{reason.removeprefix('oom: ')}, {where}{log}"
    signal_name = answer.ended.get("signal")
    how = f"killed by {signal_name}" if signal_name else reason or f"exited with status {answer.ended.get('exit')}"
    return "crashed", f"{how} {where}{log}"


def scrubbed(text: str) -> str:
    """A message without this machine's paths: a record never says where it was made."""
    source = Path(__file__).parents[2]
    for folder, name in ((Path(sys.prefix), "<python>"), (source, "."), (Path.cwd(), "."), (Path.home(), "~")):
        if len(str(folder)) > 1:
            text = text.replace(str(folder), name)
    return text[-6000:]


def _git_state(folder: Path, results: Path) -> str | None:
    """The commit of the folder, `+dirty` where tracked files outside of the results differ; None outside of git."""
    ignore = [":/", f":(exclude){results.resolve()}"] if results.resolve().is_relative_to(folder.resolve()) else []
    try:
        commit = subprocess.run(
            ["git", "-C", folder, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True
        )
        changed = subprocess.run(
            ["git", "-C", folder, "status", "--porcelain", "--untracked-files=no", "--", *ignore],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+dirty" if changed.stdout.strip() else "")
