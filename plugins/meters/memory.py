"""Peak memory of a phase."""

import ctypes
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar

from effbench.plugin import Meter, Metric, Observation, Summary

from .tensors import model_bytes

_WHILE = {"train": "training steps ran", "convert": "techniques merged and converted", "infer": "prefill and decode ran"}


class Memory(Meter):
    """Peak memory of a phase, of the rank that needs most and of all ranks together.

    CUDA: the allocator's peak. CPU: VmHWM after a reset, less what was resident when the phase began, plus the bytes of the
    live model, because a warm fork starts with hundreds of megabytes of libraries that belong to no technique. Absent where
    the system does not tell.
    """

    name: ClassVar = "memory"
    metrics: ClassVar = tuple(
        metric
        for phase, when in _WHILE.items()
        for metric in (
            Metric(f"{phase}.peak_memory_bytes", "B", "lower", f"Peak while {when}, the model included; largest rank.", "max"),
            Metric(f"{phase}.peak_memory_all_ranks_bytes", "B", "lower", f"Sum over ranks of the peak while {when}.", "sum"),
        )
    )
    _end: "Callable[[], int | None] | None" = None

    def begin(self, observation: Observation) -> None:
        """Reset the peak."""
        self._end = None
        if observation.phase in _WHILE and observation.model is not None:
            begin = _cuda_peak if observation.cell.device == "cuda" else _resident_peak
            self._end = begin(model_bytes(observation.model))

    def end(self, observation: Observation) -> Mapping[str, Summary]:
        """The peak since `begin`."""
        peak = self._end() if self._end else None
        if peak is None:
            return {}
        summary = Summary(median=peak, unit="B")
        return {f"{observation.phase}.peak_memory{ranks}_bytes": summary for ranks in ("", "_all_ranks")}


def _cuda_peak(model: int) -> "Callable[[], int | None]":
    import torch

    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.max_memory_allocated


def _resident_peak(model: int) -> "Callable[[], int | None]":
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        return lambda: None
    _release_free_memory()  # or a peak would hide in what earlier phases freed and the allocator kept
    reset.write_text("5")
    start = _status_bytes("VmRSS")
    return lambda: _status_bytes("VmHWM") - start + model


def _release_free_memory() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone
    if trim is not None:
        trim(0)


def _status_bytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))
