"""Text of single figures. Every text that comes from a record is taken for hostile."""

import math
from collections.abc import Callable
from typing import Any

MISSING = "–"


def missing(value: Any) -> bool:
    """Whether there is no finite value."""
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def plain(value: Any) -> str:
    """A text or number as it is, of one line."""
    return MISSING if missing(value) else clean(str(value)) or MISSING


def number(value: Any, human: Callable[[float], str]) -> str:
    """A number as `human` writes it."""
    return MISSING if missing(value) else human(value)


def interval(low: Any, high: Any, human: Callable[[float], str]) -> str:
    """`[1.18, 1.29]`; nothing where there is none."""
    return "" if missing(low) or missing(high) else f"[{human(low)}, {human(high)}]"


def join(gap: str, *parts: str) -> str:
    """Those parts that are there."""
    return gap.join(part for part in parts if part not in ("", MISSING)) or MISSING


def signed(value: float) -> str:
    """`+0.012`."""
    return f"{value:+.3f}"


def three(value: float) -> str:
    """Two decimals, or three significant digits where that is more."""
    return f"{value:.2f}" if value >= 0.1 else f"{value:.3g}"


def in_bytes(value: float) -> str:
    """`1.5 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:.4g} TiB"


def in_seconds(value: float) -> str:
    """`1.5 ms`."""
    for unit, size in (("s", 1), ("ms", 1e-3)):
        if value >= size:
            return f"{value / size:.3g} {unit}" if value < 1000 * size else f"{value / size:.0f} {unit}"
    return f"{value / 1e-6:.3g} µs"


def counted(value: float) -> str:
    """`1.5M`."""
    for unit in ("", "K", "M"):
        if value < 1000:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.4g}B"


def clean(text: str) -> str:
    """One line without control characters: escape sequences in a record must not reach a terminal."""
    return "".join(c if c.isprintable() else "�" for c in " ".join(text.split()))
