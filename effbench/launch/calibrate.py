"""What this machine can tell apart: its clock and rates, what an empty trial takes, and how far two equal trials differ."""

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from statistics import median, stdev
from typing import Any

from effbench.launch.answer import Answer
from effbench.launch.conditions import Watch, dirty_reason
from effbench.launch.orchestrate import findings
from effbench.launch.requests import Sources, start_message, trial_request
from effbench.launch.worker import Worker, WorkerError
from effbench.plan.plan import Plan, plan
from effbench.plan.suite import Suite
from effbench.plugin.catalog import Catalog
from effbench.plugin.cell import Cell
from effbench.store.calibration import Calibration, PairedNoise, Timer
from effbench.store.machine import gpus, this_machine

COMPARED = ("train.tokens_per_s", "infer.prefill_tokens_per_s", "infer.decode_tokens_per_s")
"""The speeds that verdicts rest on."""
_RATES_S = 120.0
_EMPTY_TRIALS = 5
_FIRST_ROUND = 2  # probes run in round 1, and their time is nobody's noise
_SUITE = {
    "name": "calibrate",
    "baseline": "full",
    "models": ["tiny-llama"],
    "workloads": ["docstrings"],
    "axes": {"seq_len": [128], "batch_size": [2]},
    "training": {"steps": 16},
    "inference": {"new_tokens": 16},
    "quality": {"documents": 1},
    "sampling": {"min_samples": 6, "min_seconds": 0.1, "interval": 0.05, "max_seconds": 0.5},
    "stacks": {"full": []},
}
"""The untouched shipped model at one shape, sampled as the suite `quick` does."""


@dataclass
class AA:
    """The same trial twice in each round."""

    log_ratios: dict[str, list[float]] = field(default_factory=lambda: {metric: [] for metric in COMPARED})
    disturbed: int = 0

    @property
    def rounds(self) -> int:
        """Rounds whose two trials both ended well."""
        return len(self.log_ratios[COMPARED[0]])

    def add(self, first: dict[str, Any], second: dict[str, Any]) -> None:
        """Take one round's metrics."""
        for metric, ratios in self.log_ratios.items():
            ratios.append(math.log(first[metric]["median"] / second[metric]["median"]))


def calibrate(catalog: Catalog, rounds: int, seconds: float, tell: Callable[[str], None]) -> Calibration:
    """Measure everything; A/A rounds end after `rounds`, or after `seconds` once there are three of them.

    Raises WorkerError where the measuring process cannot start or its trials fail.
    """
    tell("matrix products, copies and the clock")
    rates = _rates()
    calibrated = plan(Suite.model_validate(_SUITE), catalog)
    [cell] = calibrated.cells
    worker = Worker(catalog.launcher("local"), 1, start_message(calibrated, catalog, Sources(), [cell]))
    try:
        tell("starting a worker")
        worker.start()
        tell("empty trials")
        empty_trial_s = median(_empty_trials(worker, calibrated, cell))
        noise = _aa(worker, calibrated, cell, rounds, seconds, tell)
    finally:
        worker.close()
    return Calibration(
        machine=this_machine().slug,
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        torch=rates["torch"],
        timer=Timer(**rates["timer"]),
        empty_trial_s=empty_trial_s,
        matmul_flops_per_s=rates["matmul_flops_per_s"],
        copy_bytes_per_s=rates["copy_bytes_per_s"],
        paired_noise=PairedNoise(
            sd={metric: stdev(ratios) for metric, ratios in noise.log_ratios.items()},
            rounds=noise.rounds,
            threads=cell.threads,
            disturbed=noise.disturbed,
        ),
    )


def _rates() -> dict[str, Any]:
    device = "cuda" if gpus() else "cpu"
    command = [sys.executable, "-m", "effbench.worker.calibration", str(this_machine().cores), device]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_RATES_S)
    except subprocess.CalledProcessError as error:
        raise WorkerError(f"measuring this machine's rates failed; it said:\n{error.stderr.strip()[-3000:]}") from error
    except subprocess.TimeoutExpired as error:
        raise WorkerError(f"measuring this machine's rates did not end within {_RATES_S:g} s") from error
    rates: dict[str, Any] = json.loads(done.stdout)
    return rates


def _empty_trials(worker: Worker, calibrated: Plan, cell: Cell) -> Iterator[float]:
    """Door to door: fork, load the model, apply nothing, report. The first, which warms up, is not counted."""
    skips = dict.fromkeys(("train", "infer"), "an empty trial")
    for number in range(_EMPTY_TRIALS + 1):
        request = trial_request(calibrated, cell, _FIRST_ROUND) | {"phase_skips": skips}
        started = time.monotonic()
        answer = _run(worker, calibrated, request)
        _metrics(answer, calibrated)
        if number:
            yield time.monotonic() - started


def _aa(  # noqa: PLR0913, PLR0917 - where, what, how long
    worker: Worker, calibrated: Plan, cell: Cell, rounds: int, seconds: float, tell: Callable[[str], None]
) -> AA:
    found, started = AA(), time.monotonic()
    while found.rounds < rounds and (found.rounds < 3 or time.monotonic() - started < seconds):
        tell(f"the same stack twice, round {found.rounds + 1} of {rounds}")
        pair = []
        for _ in range(2):
            watch = Watch(cell.threads)
            answer = _run(worker, calibrated, trial_request(calibrated, cell, _FIRST_ROUND + found.rounds))
            found.disturbed += dirty_reason(watch.conditions()) is not None
            pair.append(_metrics(answer, calibrated))
        found.add(*pair)
    return found


def _run(worker: Worker, calibrated: Plan, request: dict[str, Any]) -> Answer:
    return worker.run(request, calibrated.suite.limits.timeout_s, lambda phase: None)


def _metrics(answer: Answer, calibrated: Plan) -> dict[str, Any]:
    found, _ = findings(answer, calibrated.suite.limits.timeout_s)
    if found["status"] != "ok":
        raise WorkerError(f"a trial of the untouched shipped model ended as {found['status']}:\n{found['error']}")
    metrics: dict[str, Any] = found["metrics"]
    return metrics
