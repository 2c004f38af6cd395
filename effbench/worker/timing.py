"""How long an action takes on a device: a clock on the CPU, events on CUDA."""

import time
from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")
Clock = Callable[[], float]


class CpuTimer:
    """Times on the host, where an action has ended when its call returns."""

    def __init__(self, clock: Clock = time.perf_counter) -> None:
        self._clock = clock

    def __call__(self, action: Callable[[], T], *, flush: bool = False) -> tuple[float, T]:
        """Seconds, and what the action returned. A CPU's caches are left as they are."""
        start = self._clock()
        result = action()
        return self._clock() - start, result


class CudaTimer:
    """Times on the device: from an event before the action, on an idle device, to one behind the last thing it put in line."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __call__(self, action: Callable[[], T], *, flush: bool = False) -> tuple[float, T]:
        """Seconds, and what the action returned; with `flush` the L2 cache holds nothing of it beforehand.

        The device is synchronised before, so that no earlier work counts, and after, so that all of this one's has happened.
        """
        if flush:
            flush_l2(self._device)
        torch.cuda.synchronize(self._device)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        result = action()
        end.record()
        torch.cuda.synchronize(self._device)
        return begin.elapsed_time(end) / 1e3, result


Timer = CpuTimer | CudaTimer


def timer_for(device: torch.device, clock: Clock = time.perf_counter) -> Timer:
    """The timer of a device; `clock` is the host's."""
    return CudaTimer(device) if device.type == "cuda" else CpuTimer(clock)


def clock_for(device: torch.device, clock: Clock = time.perf_counter) -> Clock:
    """The host's clock, read when the device has done all it was given."""

    def synchronised() -> float:
        torch.cuda.synchronize()
        return clock()

    return synchronised if device.type == "cuda" else clock


def flush_l2(device: torch.device) -> None:
    """Write zeros over twice the L2 cache's size, so that what was in it is gone.

    The buffer is freed at once, before the action; where a phase has its memory peak watched, it counts as what it is.
    """
    size = torch.cuda.get_device_properties(device).L2_cache_size
    torch.empty(2 * size, dtype=torch.uint8, device=device).zero_()
