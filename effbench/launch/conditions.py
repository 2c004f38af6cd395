"""What else a machine does while a trial runs, read before and after it: nothing of ours runs beside a measurement."""

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from effbench.launch.gpu import GpuReading, read_gpus
from effbench.store.machine import this_machine
from effbench.store.record import Conditions

_CGROUPS = Path("/sys/fs/cgroup")
_SLACK = 0.15
"""Cores: of others' CPU time, what is within the reading's own error and a desktop's usual murmur."""
_STEAL = 0.02
_THROTTLED = 0.01
_TICKS_S = 0.05
"""CPU time that the kernel's 10 ms ticks cannot tell from none: what disturbs a short trial must be longer than this, too."""


@dataclass(frozen=True)
class Reading:
    """The machine's counters at one moment; None where it has none."""

    at: float
    busy_s: float | None
    """CPU seconds of all programs since boot, on the cores that may be used here."""
    stolen_s: float | None
    own_s: float
    """CPU seconds of this process and of all below it, ended ones included."""
    throttled_s: float | None
    gpus: GpuReading | None

    @classmethod
    def now(cls, gpus: int = 0) -> "Reading":
        """Read the counters, with those of the first `gpus` GPUs; a few milliseconds."""
        busy, stolen = _machine_cpu()
        return cls(time.monotonic(), busy, stolen, _own_cpu(), _throttled(), read_gpus(gpus))


class Watch:
    """Looks at the machine before and after one trial."""

    def __init__(self, threads: int, gpus: int = 0, *, read: Callable[[int], Reading] = Reading.now) -> None:
        self._threads, self._gpus, self._read = threads, gpus, read
        self._before = read(gpus)

    def conditions(self) -> Conditions:
        """What happened since this watch was made."""
        before, after = self._before, self._read(self._gpus)
        elapsed = max(after.at - before.at, 1e-9)
        cores = this_machine().cores
        busy, stolen = _difference(before.busy_s, after.busy_s), _difference(before.stolen_s, after.stolen_s)
        return Conditions(
            seconds=round(elapsed, 4),
            cores=cores,
            wanted=self._threads,
            other_cpu=_share(busy if busy is None else busy - (after.own_s - before.own_s), elapsed),
            steal=_share(stolen, max(elapsed, (busy or 0.0) + (stolen or 0.0))),
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
    least = _TICKS_S / found.seconds
    reasons = []
    if found.other_cpu is not None and found.other_cpu > free + max(_SLACK, least):
        reasons.append(f"other programs used {found.other_cpu:.2f} cores, {free} of {found.cores} were free")
    if found.steal is not None and found.steal > max(_STEAL, least):
        reasons.append(f"the machine's host took {found.steal:.0%} of the CPU time that was asked of it")
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
    """(busy, stolen) seconds since boot of the CPUs that this process may use: what runs on others takes nothing from it."""
    try:
        lines = Path("/proc/stat").read_text().splitlines()
    except OSError:
        return None, None
    rows = (line.split() for line in lines if re.match(r"cpu\d", line))
    times = [list(map(int, row[1:9])) for row in rows if int(row[0][3:]) in os.sched_getaffinity(0)]
    ticks = os.sysconf("SC_CLK_TCK")  # user (guests included), nice, system, idle, iowait, irq, softirq, steal
    return sum(sum(t) - t[3] - t[4] - t[7] for t in times) / ticks, sum(t[7] for t in times) / ticks


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
    """Seconds that CPU quotas have held back the processes of this control group and of those around it."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    found = None
    for _, controllers, group in (line.split(":", 2) for line in lines):
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = _CGROUPS / controllers  # version 2 has no controllers in this line, and its one tree at the top
        folder = root / group.lstrip("/")
        for place in (folder, *folder.parents):
            if place.is_relative_to(root) and (seconds := _quota_s(place / "cpu.stat")) is not None:
                found = (found or 0.0) + seconds
    return found


def _quota_s(file: Path) -> float | None:
    try:
        figures = dict(line.split() for line in file.read_text().splitlines())
    except (OSError, ValueError):  # no such group here, or not in this form
        return None
    if "throttled_usec" in figures:
        return int(figures["throttled_usec"]) / 1e6
    return int(figures["throttled_time"]) / 1e9 if "throttled_time" in figures else None  # version 1
