"""How this process's malloc treats memory that is freed: a setting of the suite, the same for all of its stacks."""

import ctypes
from typing import Literal

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h
_NEVER = 2**31 - 1


def set_allocator(name: Literal["default", "keep"]) -> None:
    """`keep`: glibc reuses what was freed and returns none of it to the kernel, so that no page is faulted in again and again.

    By default each tensor above a threshold is a mapping of its own, whose pages the kernel must clear anew. That costs a
    share of the time that grows with the tensors. It holds for the rest of the process's life.
    """
    if name == "keep":
        mallopt = ctypes.CDLL(None).mallopt
        if not (mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, _NEVER)):
            raise RuntimeError('malloc refuses the setting allocator = "keep"')
