"""Runs a plan: rounds in shuffled order, one trial at a time, each written as soon as it ends."""

import random
import secrets
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from effbench.launch.answer import Answer
from effbench.launch.fingerprint import Fingerprints
from effbench.launch.worker import Worker
from effbench.plan.plan import Plan, techniques_of
from effbench.plugin.catalog import Catalog
from effbench.plugin.cell import Cell
from effbench.plugin.launcher import Launcher
from effbench.store.machine import this_machine
from effbench.store.record import Record, Status
from effbench.store.store import Store

_SEEDS_PER_ROUND = 1000  # so that no round's seed is near another suite seed's


class Listener(Protocol):
    """Who is told how a run goes on."""

    def started(self, cell: Cell, round_number: int) -> None:
        """A trial begins."""

    def phase(self, name: str) -> None:
        """The trial enters a phase."""

    def finished(self, record: Record) -> None:
        """The trial's record is written."""


@dataclass(frozen=True)
class Sources:
    """Where plugins beyond the bundled and installed ones come from, for the worker to load them too."""

    files: Sequence[Path] = ()
    folders: Sequence[Path] = ()


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
    session: str = field(default_factory=lambda: secrets.token_hex(6))

    def __post_init__(self) -> None:
        """Open the store and look at what is already there."""
        suite = self.plan.suite
        self.store = Store(self.results, this_machine(), suite.name)
        self.store.open(suite.model_copy(update={"models": list(self.plan.models), "workloads": list(self.plan.workloads)}))
        self._fingerprints = Fingerprints(self.plan, self.catalog)
        found = self.store.read()
        self.problems = found.problems
        self._current = {cell.id: self._fingerprints.of(cell) for cell in self.plan.cells}
        self._done = {(r.cell_id, r.round) for _, r in found.records if self._counts(r)}
        self._across_ranks = {metric.name: metric.across_ranks for metric in self.catalog.metrics().values()}
        self._git = _git_state(Path.cwd(), self.results)

    def pending(self) -> list[tuple[int, Cell]]:
        """(round, cell) of what has no current record, in the order it will run."""
        return [(number, cell) for number, cell in self._schedule() if (cell.id, number) not in self._done]

    def execute(self, listener: Listener) -> list[Record]:
        """Measure what is pending and write skips; returns the records of this session."""
        self._write_skips()
        records = []
        workers: dict[int, Worker] = {}
        try:
            for number, cell in self.pending():
                listener.started(cell, number)
                worker = workers.get(cell.world_size)
                if worker is None:
                    worker = workers[cell.world_size] = self._worker(cell.world_size)
                record = self._trial(worker, cell, number, listener)
                self._done.add((cell.id, number))
                records.append(record)
                listener.finished(record)
        finally:
            for worker in workers.values():
                worker.close()
            self.launcher.close()
        return records

    def _counts(self, record: Record) -> bool:
        """Whether a record stands for its trial: made by the present code, and not to be tried again."""
        finished = record.status == "ok" or (record.status != "skipped" and not self.retry_failed)
        return finished and record.fingerprint == self._current.get(record.cell_id)

    def _write_skips(self) -> None:
        for skip in self.plan.skips:
            found = {"status": "skipped", "error": skip.reason, "wall_s": 0.0}
            self.store.write(self._record(skip.cell, 1, found), None)

    def _schedule(self) -> Iterator[tuple[int, Cell]]:
        for number in range(1, self.rounds + 1):
            order = sorted(self.plan.cells, key=lambda cell: cell.id)
            random.Random(f"{self.plan.suite.seed}:{number}").shuffle(order)  # noqa: S311 - an order, not a secret
            yield from ((number, cell) for cell in order)

    def _worker(self, world_size: int) -> Worker:
        suite = self.plan.suite
        cells = [cell for cell in self.plan.cells if cell.world_size == world_size]
        start = {
            "files": [str(file) for file in self.sources.files],
            "folders": [str(folder) for folder in self.sources.folders],
            "models": {cell.model: self.plan.models[cell.model] for cell in cells},
            "workloads": {cell.workload: self.plan.workloads[cell.workload] for cell in cells},
            "trust_remote_code": suite.trust_remote_code,
            "imports": sorted({module for cell in cells for t in techniques_of(cell, self.catalog) for module in t.imports}),
        }
        return Worker(self.launcher, world_size, start, self._across_ranks)

    def _trial(self, worker: Worker, cell: Cell, number: int, listener: Listener) -> Record:
        suite = self.plan.suite
        memory = suite.limits.memory_gb
        request = {
            "cell": cell.model_dump(mode="json"),
            "seed": self._seed(number),
            "phase_skips": self.plan.phase_skips.get(cell.id, {}),
            "memory_bytes": None if memory is None else int(memory * 2**30),
        }
        worker.start()  # not a part of any trial's time
        started = time.monotonic()
        answer = worker.run(request, suite.limits.timeout_s, listener.phase)
        found, samples = _findings(answer, suite.limits.timeout_s)
        found["wall_s"] = round(time.monotonic() - started, 4)
        return self.store.write(self._record(cell, number, found), samples)

    def _record(self, cell: Cell, number: int, found: dict[str, Any]) -> Record:
        return Record(
            cell_id=cell.id,
            cell=cell,
            round=number,
            session=self.session,
            seed=self._seed(number),
            fingerprint=self._current.get(cell.id) or self._fingerprints.of(cell),
            machine=this_machine().slug,
            plugins={name: self.catalog.techniques.plugin_of(name) for name, _ in cell.techniques},
            git=self._git,
            **found,
        )

    def _seed(self, number: int) -> int:
        return self.plan.suite.seed + _SEEDS_PER_ROUND * number


def _findings(answer: Answer, timeout_s: float) -> tuple[dict[str, Any], dict[str, Any] | None]:
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
    for folder, name in ((Path.cwd(), "."), (Path.home(), "~")):
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
