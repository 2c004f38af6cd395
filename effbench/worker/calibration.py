"""What this machine's processor and memory can do. Run as `python -m effbench.worker.calibration CPU_THREADS…`; prints JSON."""

import itertools
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from effbench.store.calibration import matmul_key
from effbench.worker.timing import timer_for

_SECONDS = 0.25  # of samples, per size and type
_TOO_LONG_S = 0.5  # for one product: where a type has no fast kernel, a larger size would take minutes and be no faster
_SIZES = {"cpu": (256, 512, 1024, 2048), "cuda": (2048, 4096, 8192)}
_DTYPES = {"cpu": ("float32", "bfloat16"), "cuda": ("float32", "bfloat16", "float16")}
_COPY_BYTES = {"cpu": 2**28, "cuda": 2**31}


def measure(threads: list[int]) -> dict[str, Any]:
    """Every figure, with the CPU at each number of threads and the first GPU where there is one."""
    places = [(torch.device("cpu"), count) for count in threads]
    if torch.cuda.is_available():
        places.append((torch.device("cuda"), 1))
    peaks, copies = {}, {}
    for device, count in places:
        torch.set_num_threads(count)
        copies[f"{device.type} {count}"] = copy_bandwidth(device)
        for dtype in _DTYPES[device.type]:
            peaks[matmul_key(device.type, dtype, count)] = matmul_peak(device, getattr(torch, dtype))
    return {
        "torch": torch.__version__,
        "timer": {"resolution_s": timer_resolution(), "cost_s": timer_cost()},
        "matmul_flops_per_s": peaks,
        "copy_bytes_per_s": copies,
    }


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of square products, a multiply-add being two: the fastest run of the fastest size."""
    best = 0.0
    for size in _SIZES[device.type]:
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        seconds = _fastest(partial(torch.matmul, a, b), device)
        best = max(best, 2 * size**3 / seconds)
        if 8 * seconds > _TOO_LONG_S:
            break
    return best


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second, read and written both counted (as STREAM does, McCalpin 1995)."""
    source = torch.zeros(_COPY_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    return 2 * source.numel() / _fastest(lambda: target.copy_(source), device)


def timer_resolution() -> float:
    """The smallest difference between two readings of the clock that are not equal, in seconds."""
    readings = [time.perf_counter() for _ in range(10_000)]
    return min(later - earlier for earlier, later in itertools.pairwise(readings) if later > earlier)


def timer_cost() -> float:
    """Seconds that one reading of the clock takes: the best of some long rows of readings."""
    rows = [[time.perf_counter() for _ in range(1000)] for _ in range(20)]
    return min(row[-1] - row[0] for row in rows) / 999


def _fastest(action: Callable[[], Tensor], device: torch.device) -> float:
    timer = timer_for(device)
    timer(action)
    durations: list[float] = []
    while sum(durations) < _SECONDS:
        durations.append(timer(action)[0])
    return min(durations)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure([int(count) for count in sys.argv[1:]])))
