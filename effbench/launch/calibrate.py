"""Calibrates a machine: its speed by a process of its own, its noise by running one stack under two names."""

import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from effbench.launch.orchestrate import Run
from effbench.launch.requests import Sources
from effbench.plan.plan import plan
from effbench.plan.suite import Suite
from effbench.plugin.catalog import Catalog
from effbench.plugin.errors import InputError
from effbench.store.calibration import Calibration, PairedNoise
from effbench.store.machine import this_machine
from effbench.store.record import Record

NOISE_METRICS = ("train.tokens_per_s", "infer.prefill_tokens_per_s", "infer.decode_tokens_per_s")
_SAME_STACK_TWICE: dict[str, Any] = {
    "name": "calibrate",
    "baseline": "a",
    "models": ["tiny-llama"],
    "workloads": ["docs"],
    "axes": {"seq_len": [128], "batch_size": [4]},
    "training": {"steps": 20},
    "inference": {"new_tokens": 16},
    "quality": {"documents": 1},
    "limits": {"dirty_repeats": 0},
    "stacks": {"a": [], "b": []},
}
_SMALLEST: dict[str, Any] = _SAME_STACK_TWICE | {
    "name": "smallest",
    "axes": {"seq_len": [8]},
    "training": {"steps": 1},
    "inference": {"new_tokens": 2},
    "sampling": {"min_samples": 2, "min_seconds": 0, "interval": 100, "max_seconds": 1e-6},
    "stacks": {"a": []},
}


def calibrate(catalog: Catalog, rounds: int, progress: Callable[[str], None]) -> Calibration:
    """Measure everything; `progress` is told what comes next. Less than a minute with 8 rounds."""
    progress("the processor and the memory")
    figures = _figures()
    progress("the fixed cost of a trial")
    trials = _run(_SMALLEST, catalog, 5)
    progress(f"the noise: one stack under two names, {rounds} rounds")
    pairs = _run(_SAME_STACK_TWICE, catalog, rounds)
    return Calibration(
        machine=this_machine().slug,
        measured_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        empty_trial_s=statistics.median(record.wall_s for record in trials),
        paired_noise=PairedNoise(
            sd={metric: noise for metric in NOISE_METRICS if (noise := paired_noise(pairs, metric)) is not None},
            rounds=rounds,
            threads=pairs[0].cell.threads,
            disturbed=sum(record.dirty is not None for record in pairs),
        ),
        **figures,
    )


def paired_noise(records: list[Record], metric: str) -> float | None:
    """Standard deviation of log(a / b) over the rounds in which both stacks have the metric; None below three rounds."""
    from math import log

    by_round: dict[int, list[float]] = {}
    for record in sorted(records, key=lambda record: record.cell.stack):
        if record.status == "ok" and metric in record.metrics:
            by_round.setdefault(record.round, []).append(log(record.metrics[metric].median))
    ratios = [pair[0] - pair[1] for pair in by_round.values() if len(pair) > 1]
    return statistics.stdev(ratios) if len(ratios) > 2 else None


def _figures() -> dict[str, Any]:
    threads = sorted({1, this_machine().cores})
    command = [sys.executable, "-m", "effbench.worker.calibration", *map(str, threads)]
    # Nothing is inherited from a shell that asks for fewer threads: here they are set for each figure.
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"the calibration of the processor failed:\n{done.stderr.strip()[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


class _Silent:
    def planned(self, trials: int) -> None: ...
    def started(self, cell: Any, round_number: int) -> None: ...
    def phase(self, name: str) -> None: ...
    def repeated(self, reason: str) -> None: ...
    def finished(self, record: Record) -> None: ...


def _run(content: dict[str, Any], catalog: Catalog, rounds: int) -> list[Record]:
    suite = Suite.model_validate(content)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(plan(suite, catalog), catalog, Sources(), Path(folder), rounds, catalog.launcher("local"))
        run.execute(_Silent())
        records = [record for _, record in run.store.read().records]
    if bad := next((record for record in records if record.status != "ok"), None):
        raise InputError(f"a trial of the calibration ended as {bad.status}: {bad.headline}")
    return records
