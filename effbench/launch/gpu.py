"""What NVML says of the GPUs: clocks, how long they were slowed down, who else uses them. Needs nvidia-ml-py (extra `gpu`)."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from effbench.store.machine import gpus

T = TypeVar("T")
_POLICIES = ("NVML_PERF_POLICY_THERMAL", "NVML_PERF_POLICY_RELIABILITY")  # not POWER: full load meets the power limit by design


@dataclass(frozen=True)
class GpuReading:
    """A trial's GPUs at one moment; None, or empty, where NVML does not tell."""

    slowed_s: tuple[float, ...]
    """Seconds since the driver started in which heat or the hardware held each GPU back."""
    clock_mhz: int | None
    """Of the first GPU."""
    processes: int | None
    """That hold a context on any of them. effbench's own hold none between trials."""

    def slowed_since(self, before: "GpuReading") -> float | None:
        """Seconds of the GPU that was slowed down most."""
        return max((after - earlier for earlier, after in zip(before.slowed_s, self.slowed_s, strict=False)), default=None)


def read_gpus(count: int) -> GpuReading | None:
    """Read NVML's counters of the first `count` GPUs that CUDA shows; None without any, or without nvidia-ml-py."""
    nvml = _nvml() if count else None
    if nvml is None:
        return None
    handles = _asked(nvml, lambda: _handles(nvml, count))
    if not handles:
        return None
    return GpuReading(
        slowed_s=_asked(nvml, lambda: tuple(_slowed_s(nvml, handle) for handle in handles)) or (),
        clock_mhz=_asked(nvml, lambda: int(nvml.nvmlDeviceGetClockInfo(handles[0], nvml.NVML_CLOCK_SM))),
        processes=_asked(nvml, lambda: sum(len(nvml.nvmlDeviceGetComputeRunningProcesses(handle)) for handle in handles)),
    )


def _asked(nvml: Any, question: Callable[[], T]) -> T | None:
    """NVML's answer, None where this GPU (a slice of one, an older driver) has none."""
    try:
        return question()
    except nvml.NVMLError:
        return None


def _handles(nvml: Any, count: int) -> list[Any]:
    """Of the GPUs that the worker will see as cuda:0 and on; like GPUs are in the same order in CUDA and NVML."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(index) for index in range(nvml.nvmlDeviceGetCount())]
    return [
        nvml.nvmlDeviceGetHandleByIndex(int(name)) if name.strip().isdigit() else nvml.nvmlDeviceGetHandleByUUID(name.strip())
        for name in names[:count]
    ]


def _slowed_s(nvml: Any, handle: Any) -> float:
    found = (nvml.nvmlDeviceGetViolationStatus(handle, getattr(nvml, policy)).violationTime for policy in _POLICIES)
    return float(sum(found)) / 1e9


@cache
def _nvml() -> Any | None:
    if not gpus():
        return None
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # a driver of another version than its library
        return None
    return pynvml
