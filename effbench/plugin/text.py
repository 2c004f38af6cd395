"""Text of single figures and of tables. Every text that comes from a record is taken for hostile."""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pandas as pd

MISSING = "–"
Form = Literal["bytes", "seconds", "share", "count"]
_FORMULA = ("=", "+", "-", "@")
_MARKDOWN = re.compile(r"[\\`|\[\]*~$]|(?<![^\W_])_|_(?![^\W_])")
"""What would be markup; underscores within a word are none."""


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
        if value < 1023.5:
            return f"{_plain(value)} {unit}"
        value /= 1024
    return f"{_plain(value)} TiB"


def in_seconds(value: float) -> str:
    """`1.5 ms`."""
    for unit, size in (("s", 1), ("ms", 1e-3)):
        if value >= 0.9995 * size:  # less has three digits in the next unit
            return f"{_plain(value / size)} {unit}"
    return f"{_plain(value / 1e-6)} µs"


def counted(value: float) -> str:
    """`1.5M`."""
    for unit in ("", "K", "M"):
        if value < 999.5:
            return f"{_plain(value)}{unit}"
        value /= 1000
    return f"{_plain(value)}B"


def share(value: float) -> str:
    """`12.5 %`."""
    return f"{_plain(100 * value)} %"


_HUMAN: Mapping[Form, Callable[[float], str]] = MappingProxyType(
    {"bytes": in_bytes, "seconds": in_seconds, "share": share, "count": counted}
)


def form_of(metric: str) -> Form:
    """What a metric's values are of: its name ends as its unit says."""
    if metric.endswith(("_bytes", ".bytes")):
        return "bytes"
    if metric.endswith("_s") and not metric.endswith("_per_s"):
        return "seconds"
    return "share" if metric.endswith("_share") else "count"


def human_of(metric: str) -> Callable[[float], str]:
    """How a metric's values are written."""
    return _HUMAN[form_of(metric)]


def _plain(value: float) -> str:
    """Three significant digits, or all before the point where those are more: `g` would write 1.01e+03."""
    return f"{value:.3g}" if value < 999.5 else f"{value:.0f}"


def clean(text: str) -> str:
    """One line without control characters: escape sequences in a record must not reach a terminal."""
    return "".join(c if c.isprintable() else "�" for c in " ".join(text.split()))


def markdown(text: str) -> str:
    """A text that GitHub's Markdown shows as it is."""
    return _MARKDOWN.sub(r"\\\g<0>", text).replace("&", "&amp;").replace("<", "&lt;")


def markdown_row(cells: Iterable[str]) -> str:
    """One line of a table."""
    return "| " + " | ".join(cell if cell == "---" else markdown(cell.replace("\n", " ")) for cell in cells) + " |"


def csv(frame: "pd.DataFrame") -> str:
    """A table as CSV; an empty field is a missing value.

    Text is of one line, and a spreadsheet runs none of it as a formula: what begins like one has an apostrophe in front.
    """
    import pandas as pd

    columns = {name: column.map(_field) if column.dtype.kind == "O" else column for name, column in frame.items()}
    return str(pd.DataFrame(columns).rename(columns=lambda name: _field(str(name))).to_csv(index=False))


def _field(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = clean(value)
    return f"'{text}" if text.startswith(_FORMULA) else text
