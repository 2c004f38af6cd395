"""What the tools share: one `effbench run` as a shell would start it, what it cost, and the loop written by hand."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from effbench.store.record import Record
from effbench.store.store import read_records, read_samples

_BY_HAND = Path(__file__).with_name("by_hand.py")


@dataclass(frozen=True)
class Trial:
    """A record with the durations that its numbers were made of."""

    record: Record
    samples: dict[str, list[float]]
    written_at: float
    """When the record's file was written, in seconds of the system's clock."""

    @property
    def measuring_s(self) -> float:
        """Seconds in training steps, prefills and decode loops, warm-up included."""
        return sum(sum(self.samples.get(name, ())) for name in ("step", "end_to_end"))

    @property
    def rest_s(self) -> float:
        """What the trial took beyond that, door to door: fork, loading, meters, sizes, the answer."""
        return self.record.wall_s - self.measuring_s


@dataclass(frozen=True)
class Run:
    """One finished `effbench run`. CPU times are user and system together, of all threads."""

    trials: list[Trial]
    wall_s: float
    orchestrator_cpu_s: float
    workers_cpu_s: float

    @property
    def measuring_s(self) -> float:
        """Of all trials."""
        return sum(trial.measuring_s for trial in self.trials)


def run_suite(suite: str, folder: Path, *options: str) -> Run:
    """Run a suite (TOML) in a fresh process; its results go below `folder`. SystemExit with its output where it fails."""
    folder.mkdir(parents=True, exist_ok=True)
    file, results = folder / "suite.toml", folder / "results"
    file.write_text(suite)
    command = [sys.executable, "-m", "effbench", "run", str(file), "--results", str(results), *options]
    with tempfile.TemporaryFile() as output:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # not reaped yet: its times can still be read, exactly
        wall_s = time.perf_counter() - start
        cpu = psutil.Process(process.pid).cpu_times()
        if process.wait() != 0:
            output.seek(0)
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{output.read().decode()[-3000:]}")
    return Run(trials_of(results), wall_s, cpu.user + cpu.system, cpu.children_user + cpu.children_system)


def trials_of(results: Path) -> list[Trial]:
    """Every trial below a results folder that ended well, by round and cell."""
    found = [(file, record) for file, record in read_records(results).records if record.status == "ok" and record.samples]
    found.sort(key=lambda pair: (pair[1].round, pair[1].cell_id))
    return [
        Trial(record, read_samples(file.parent / str(record.samples))["samples"], file.stat().st_mtime)
        for file, record in found
    ]


def disturbed(trials: Sequence[Trial]) -> str | None:
    """One line on trials that something else on the machine slowed down, None where there are none."""
    found = [trial.record.dirty for trial in trials if trial.record.dirty]
    return f"NOT A QUIET MACHINE: {len(found)} of {len(trials)} trials were disturbed ({found[0]})" if found else None


def by_hand(
    model: Path,
    cells: Sequence[Mapping[str, Any]],
    threads: int,
    python: str = sys.executable,
    env: Mapping[str, str] = os.environ,
) -> list[list[float]]:
    """Durations of the hand-written loop's steps or prefills, per cell (see by_hand.py), in one fresh process."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as settings:
        json.dump({"model": str(model), "threads": threads, "cells": cells}, settings)
        settings.flush()
        command, environment = [python, str(_BY_HAND), settings.name], {**env, "OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    durations: list[list[float]] = json.loads(done.stdout.strip().splitlines()[-1])
    return durations
