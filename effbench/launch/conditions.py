"""What else a machine does while a trial runs, read before and after it: nothing of ours runs beside a measurement."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from effbench.launch.gpu import GpuReading, read_gpus
from effbench.store.machine import this_machine
from effbench.store.record import Conditions

_SLACK = 0.15
"""Cores: of others' CPU time, what is within the reading's own error and a desktop's usual murmur."""
_STEAL = 0.02
_THROTTLED = 0.01


@dataclass(frozen=True)
class Reading:
    """The machine's counters at one moment; None where it has none."""

    at: float
    busy_s: float | None
    """CPU seconds of all programs since boot."""
    stolen_s: float | None
    own_s: float
    """CPU seconds of this process and of all below it, ended ones included."""
    throttled_s: float | None
    gpus: GpuReading | None

    @classmethod
    def now(cls) -> "Reading":
        """Read the counters; a few milliseconds."""
        busy, stolen = _machine_cpu()
        return cls(time.monotonic(), busy, stolen, _own_cpu(), _throttled(), read_gpus())


class Watch:
    """Looks at the machine before and after one trial."""

    def __init__(self, threads: int, *, read: Callable[[], Reading] = Reading.now) -> None:
        self._threads, self._read = threads, read
        self._before = read()

    def conditions(self) -> Conditions:
        """What happened since this watch was made."""
        before, after = self._before, self._read()
        elapsed = max(after.at - before.at, 1e-9)
        cores = this_machine().cores
        other = _difference(before.busy_s, after.busy_s)
        return Conditions(
            cores=cores,
            wanted=self._threads,
            other_cpu=_share(other if other is None else other - (after.own_s - before.own_s), elapsed),
            steal=_share(_difference(before.stolen_s, after.stolen_s), elapsed * (os.cpu_count() or cores)),
            throttled=_share(_difference(before.throttled_s, after.throttled_s), elapsed),
            load=round(os.getloadavg()[0], 2),
            **_gpu_conditions(before, after, elapsed),
        )


def dirty_reason(found: Conditions) -> str | None:
    """Why a trial's timings are not to be trusted, or None. docs/measuring.md states the rule.

    Others may use the cores that the trial leaves free: a program on another core slows a one-thread step hardly at all, one on
    the same cores slows a step of as many threads as there are cores many times over.
    """
    free = max(0, found.cores - found.wanted)
    reasons = []
    if found.other_cpu is not None and found.other_cpu > free + _SLACK:
        reasons.append(f"other programs used {found.other_cpu:.2f} cores, {free} of {found.cores} were free")
    if found.steal is not None and found.steal > _STEAL:
        reasons.append(f"the machine's host took {found.steal:.0%} of its CPU time")
    if found.throttled is not None and found.throttled > _THROTTLED:
        reasons.append(f"a CPU quota held it back {found.throttled:.0%} of the time")
    if found.gpu_throttled is not None and found.gpu_throttled > _THROTTLED:
        reasons.append(f"a GPU was slowed down {found.gpu_throttled:.0%} of the time")
    if found.gpu_foreign:
        reasons.append(f"{found.gpu_foreign} other processes were on a GPU")
    return "; ".join(reasons) or None


def _gpu_conditions(before: Reading, after: Reading, elapsed: float) -> dict[str, Any]:
    if before.gpus is None or after.gpus is None:
        return {}
    return {
        "gpu_throttled": _share(after.gpus.slowed_since(before.gpus), elapsed),
        "gpu_clock_mhz": after.gpus.clock_mhz,
        "gpu_foreign": before.gpus.processes,
    }


def _difference(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before


def _share(seconds: float | None, elapsed: float) -> float | None:
    return None if seconds is None else round(max(0.0, seconds) / elapsed, 4)


def _machine_cpu() -> tuple[float, float] | tuple[None, None]:
    """(busy, stolen) seconds of all CPUs since boot."""
    if not Path("/proc/stat").exists():
        return None, None
    times = psutil.cpu_times()
    return times.user + times.nice + times.system + times.irq + times.softirq, times.steal


def _own_cpu() -> float:
    total = 0.0
    this = psutil.Process()
    for process in (this, *this.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:  # it ended between two looks; its parent's figures have its time
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def _throttled() -> float | None:
    """Seconds that the control group's CPU quota has held its processes back (cgroup v2)."""
    try:
        group = next(line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
        lines = (Path("/sys/fs/cgroup") / group.lstrip("/") / "cpu.stat").read_text().splitlines()
    except (OSError, StopIteration):
        return None
    figures = dict(line.split() for line in lines)
    return int(figures["throttled_usec"]) / 1e6 if "throttled_usec" in figures else None
