"""Text of single figures. Every text that comes from a record is taken for hostile."""

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

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


def human_of(metric: str) -> Callable[[float], str]:
    """How a metric's values are written: its name ends as its unit says."""
    if metric.endswith("_bytes"):
        return in_bytes
    if metric.endswith("_s") and not metric.endswith("_per_s"):
        return in_seconds
    return share if metric.endswith("_share") else counted


def _plain(value: float) -> str:
    """Three significant digits, or all before the point where those are more: `g` would write 1.01e+03."""
    return f"{value:.3g}" if value < 999.5 else f"{value:.0f}"


def clean(text: str) -> str:
    """One line without control characters: escape sequences in a record must not reach a terminal."""
    return "".join(c if c.isprintable() else "�" for c in " ".join(text.split()))


def csv_of(frame: "pd.DataFrame") -> str:
    """Comma-separated values that neither a terminal takes for a control sequence nor a spreadsheet for a formula."""
    import pandas as pd

    texts = {name: column for name, column in frame.items() if not pd.api.types.is_numeric_dtype(column)}
    guarded = {
        str(name): pd.Series([_no_formula(value) if isinstance(value, str) else value for value in column], frame.index, object)
        for name, column in texts.items()
    }
    return str(frame.assign(**guarded).rename(columns=_no_formula).to_csv(index=False))


def _no_formula(text: str) -> str:
    """Behind an apostrophe where it would begin a formula (OWASP, "CSV Injection")."""
    line = clean(text)
    return f"'{line}" if line.startswith(("=", "+", "-", "@")) else line


def markdown(text: str) -> str:
    """A text that GitHub's Markdown shows as it is."""
    for character in "\\`|[]*":
        text = text.replace(character, f"\\{character}")
    return text.replace("&", "&amp;").replace("<", "&lt;")


def markdown_row(cells: Iterable[str]) -> str:
    """One line of a table."""
    return "| " + " | ".join(cell if cell == "---" else markdown(cell.replace("\n", " ")) for cell in cells) + " |"
