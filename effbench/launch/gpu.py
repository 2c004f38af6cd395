"""What NVML says of the GPUs: clocks, how long they were slowed down, who else uses them. Needs nvidia-ml-py (extra `gpu`)."""

from dataclasses import dataclass
from functools import cache
from typing import Any

from effbench.store.machine import gpus

_POLICIES = ("NVML_PERF_POLICY_THERMAL", "NVML_PERF_POLICY_RELIABILITY")  # not POWER: full load meets the power limit by design


@dataclass(frozen=True)
class GpuReading:
    """All GPUs at one moment."""

    slowed_s: tuple[float, ...]
    """Seconds since the driver started in which heat or the hardware held each GPU back; empty where it does not tell."""
    clock_mhz: int
    processes: int
    """That hold a context on any GPU. effbench's own hold none between trials."""

    def slowed_since(self, before: "GpuReading") -> float | None:
        """Seconds of the GPU that was slowed down most."""
        pairs = zip(before.slowed_s, self.slowed_s, strict=True)
        return max((after - earlier for earlier, after in pairs), default=None)


def read_gpus() -> GpuReading | None:
    """Read NVML's counters; None without a GPU or without nvidia-ml-py."""
    nvml = _nvml()
    if nvml is None:
        return None
    handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
    try:
        slowed = tuple(sum(_violation_s(nvml, handle, getattr(nvml, policy)) for policy in _POLICIES) for handle in handles)
    except nvml.NVMLError_NotSupported:
        slowed = ()
    return GpuReading(
        slowed_s=slowed,
        clock_mhz=nvml.nvmlDeviceGetClockInfo(handles[0], nvml.NVML_CLOCK_SM),
        processes=sum(len(nvml.nvmlDeviceGetComputeRunningProcesses(handle)) for handle in handles),
    )


def _violation_s(nvml: Any, handle: Any, policy: int) -> float:
    return float(nvml.nvmlDeviceGetViolationStatus(handle, policy).violationTime) / 1e9


@cache
def _nvml() -> Any | None:
    if not gpus():
        return None
    try:
        import pynvml
    except ImportError:
        return None
    pynvml.nvmlInit()
    return pynvml
