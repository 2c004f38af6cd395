"""How this process's malloc treats memory that is freed: a setting of the suite, the same for all of its stacks."""

import ctypes
from collections.abc import Mapping

from effbench.plugin.cell import Allocator

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4  # of glibc's malloc.h
_NEVER = 2**31 - 1
_SETTINGS: Mapping[Allocator, Mapping[int, int]] = {
    "default": {},
    "keep": {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: _NEVER},
    "release": {_M_MMAP_THRESHOLD: 2**16},
}


def set_allocator(name: Allocator) -> None:
    """Tell glibc what to do with freed memory. It holds for the rest of the process's life.

    By default each tensor above a threshold is a mapping of its own, whose pages the kernel must clear anew; that costs a share
    of the time that grows with the tensors. But the threshold rises to 32 MB with what is freed, and smaller tensors then lie
    on a heap that what is still alive keeps from shrinking: memory is held of which nothing is used.

    `keep`: what was freed is reused and never returned, so that no page is faulted in again. `release`: whatever is 64 KB or
    more is returned when it is freed, so that resident memory is that of living tensors, at the cost of most page faults.
    """
    mallopt = ctypes.CDLL(None).mallopt if _SETTINGS[name] else None
    if mallopt and not all(mallopt(option, value) for option, value in _SETTINGS[name].items()):
        raise RuntimeError(f'malloc refuses the setting allocator = "{name}"')
