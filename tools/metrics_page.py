"""Writes docs/metrics.md: every bundled metric as what measures or counts it defines it. `python tools/metrics_page.py`."""

import inspect
from pathlib import Path

from effbench.plugin import Meter, Technique
from effbench.plugin.discovery import discover

PAGE = Path(__file__).parent.parent / "docs" / "metrics.md"

_HEAD = """# Metrics

Written by `python tools/metrics_page.py` from the bundled meters, and techniques that count; a test compares. Change those.

A metric is `phase.what_unit`. What could not be measured is absent from a record, never 0. *Better* says which way is good.
*Ranks* says how several ranks' values become the one in the record: the first rank's (the same on all, or already that of the
slowest), the largest, or the sum. Timed values are medians of the samples after warm-up ([sampling](measuring.md)), with
`warmup`, `outliers` and why sampling `stopped`; others are exact. `share` is between 0 and 1. `effbench list meters` shows the
metrics of installed plugins too.
"""


def page() -> str:
    """The whole page."""
    catalog = discover()
    sources = [s for s in (*catalog.meters, *catalog.techniques) if s.metrics and s.__module__.startswith("effbench_plugins.")]
    return "\n".join([_HEAD, *(section(source) for source in sources)])


def section(source: type[Meter] | type[Technique]) -> str:
    """A meter, what it is and a table of its metrics; of a technique what it is in one line."""
    rows = [f"| `{m.name}` | {m.unit or 'count'} | {m.direction} | {m.across_ranks} | {m.definition} |" for m in source.metrics]
    table = ["| metric | unit | better | ranks | what it is |", "|---|---|---|---|---|", *rows]
    about = inspect.cleandoc(source.__doc__ or "")
    if issubclass(source, Technique):
        about = about.splitlines()[0]
    return "\n".join([f"## {source.name}", "", about, "", *table, ""])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(PAGE.parent.parent)}")
