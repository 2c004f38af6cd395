"""How fast this machine multiplies and copies, and how finely it tells the time: `python -m effbench.worker.calibration`.

Prints one JSON object. It is a process of its own, because a warm worker's parent never runs an operation.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # as in a worker; `set_num_threads` raises it from there

import torch

from effbench.store.calibration import matmul_key
from effbench.worker.timing import Timer, timer_for

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int8)
_SIZES = {"cpu": (256, 512, 1024, 2048), "cuda": (1024, 2048, 4096, 8192)}
_MATMUL_S = 8.0
_COPY_S = 1.0
"""For all types and numbers of threads together: a machine of many cores takes no longer than a small one."""
_REPEATS = 3
_COPY_BYTES = {"cpu": 256 * 2**20, "cuda": 1024 * 2**20}
"""Of one of the two arrays: more than any cache but a few servers' last level holds."""
_MEMORY_SHARE = 8
"""The copied arrays take at most two in so many parts of the memory that is there."""


def main() -> None:
    """Measure, and print the result."""
    cores, device = int(sys.argv[1]), torch.device(sys.argv[2])
    threads = thread_counts(cores) if device.type == "cpu" else [1]
    found = {
        "torch": torch.__version__,
        "timer": clock(),
        "matmul_flops_per_s": dict(matmul_peaks(device, threads)),
        "copy_bytes_per_s": dict(copy_rates(device, threads)),
    }
    sys.stdout.write(json.dumps(found))


def thread_counts(cores: int) -> list[int]:
    """Every number up to 8, then powers of two, and all cores."""
    return [n for n in range(1, cores + 1) if n <= 8 or n == cores or n & (n - 1) == 0]


def clock(count: int = 100_000) -> dict[str, float]:
    """The smallest step that the CPU's clock was seen to make, and what looking at it costs; seconds."""
    seen = [time.perf_counter() for _ in range(count)]
    steps = [after - before for before, after in pairwise(seen) if after > before]
    return {"resolution_s": min(steps), "cost_s": (seen[-1] - seen[0]) / (count - 1)}


def matmul_peaks(device: torch.device, threads: Sequence[int], seconds: float = _MATMUL_S) -> Iterable[tuple[str, float]]:
    """FLOP/s of square products, a multiply-add being two: the best of sizes, layouts and repeats, by `matmul_key`.

    The layouts are A·B and A·Bᵀ, the latter a linear layer's: where a CPU has no instructions for a type, one can be ten times
    as fast as the other. A type that cannot be multiplied is missing.
    """
    for count in threads:
        torch.set_num_threads(count)
        for dtype in DTYPES:
            try:
                peak = max(_matmul_rates(device, dtype, seconds / len(threads) / len(DTYPES)))
            except RuntimeError:  # not implemented for this type on this device
                if dtype == torch.float32:
                    raise
                continue
            yield matmul_key(device.type, str(dtype).removeprefix("torch."), count), peak


def _matmul_rates(device: torch.device, dtype: torch.dtype, seconds: float) -> Iterable[float]:
    """By size; from the second on in the better layout alone. Sizes that would take more than their share are left out."""
    timer, multiply = timer_for(device), torch._int_mm if dtype == torch.int8 else torch.mm
    share = seconds / (len(_SIZES[device.type]) + 1)
    layouts: tuple[bool, ...] = (False, True)  # whether the right matrix is transposed
    for size in _SIZES[device.type]:
        left, right = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
        times = {t: _best(timer, partial(multiply, left, right.t() if t else right), share) for t in layouts}
        best = min(times, key=times.__getitem__)
        yield 2 * size**3 / times[best]
        if 8 * times[best] > share:  # twice the size is eight times the work
            return
        layouts = (best,)


def copy_rates(
    device: torch.device, threads: Sequence[int], seconds: float = _COPY_S, size: int | None = None
) -> Iterable[tuple[str, float]]:
    """Bytes per second, read and written ones together (as STREAM's copy counts), by `device threads`."""
    timer, count = timer_for(device), size or min(_COPY_BYTES[device.type], _memory(device) // _MEMORY_SHARE)
    source, target = (torch.zeros(count, dtype=torch.uint8, device=device) for _ in range(2))
    target.copy_(source)  # its pages are there from now on
    for number in threads:
        torch.set_num_threads(number)
        yield f"{device.type} {number}", 2 * count / _best(timer, lambda: target.copy_(source), seconds / len(threads))


def _best(timer: Timer, action: Callable[[], Any], seconds: float) -> float:
    """The shortest of at least three runs, and of as many as fit into `seconds`; the first, which warms up, is not counted."""
    timer(action)
    spent = [timer(action)[0] for _ in range(_REPEATS)]
    while sum(spent) < seconds:
        spent.append(timer(action)[0])
    return min(spent)


def _memory(device: torch.device) -> int:
    """Bytes that are free."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return psutil.virtual_memory().available


if __name__ == "__main__":
    main()
