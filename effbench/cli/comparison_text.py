"""A comparison as text: for a terminal, for a pull request's comment, for programs."""

import json
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from io import StringIO
from typing import Any, NamedTuple

from effbench.board.compare import FAILS, IMPROVEMENTS, REGRESSIONS, RUNS, Comparison
from effbench.board.verdict import SAME, UNCLEAR
from effbench.plugin.text import (
    clean,
    csv_of,
    human_of,
    interval,
    join,
    missing,
    number,
    plain,
    three,
)

GITHUB_LIMIT = 65_536
"""Characters of a comment."""
_ERROR = 160
_TITLES = ["verdict", "stack", "cell", "metric", "old", "new", "new / old", "rounds"]
_REASON_TITLES = ["stack", "cell", "metric", "reason"]
_SPEEDS = "_tokens_per_s"
_LEGEND = (
    "new / old: ratio with its plain 95 % interval. Verdicts rest on intervals adjusted for the number of cells, wholly beyond "
    "or within {speed:g} % (speeds), {quality:g} % (scores), {size:g} % (sizes); UNCLEAR is neither. docs/comparing.md"
)


_MARKUP = re.compile(r"[^\w \-–→…×%,()/;.]|(?<![^\W_])_|_(?![^\W_])|(?<=[A-Za-z])\.(?=[A-Za-z])")
"""All but letters, digits and harmless signs: underscores at a word's ends, and dots as in the names of hosts."""


class _Section(NamedTuple):
    title: str
    titles: Sequence[str]
    rows: list[list[str]]
    folded: bool = True


def summary(found: Comparison) -> str:
    """One line: how much was compared, and what was found; what there is none of is left out, except what fails checks."""
    words = [*REGRESSIONS, *IMPROVEMENTS, UNCLEAR, SAME]
    shown = [f"{found.verdicts[word]} {word}" for word in words if found.verdicts[word] or word in REGRESSIONS]
    against = ", speeds relative to each side's baseline" if found.relative else ""
    return f"{found.compared} cell{'' if found.compared == 1 else 's'} compared{against}: {', '.join(shown)}"


def table(found: Comparison) -> str:
    """For a terminal; what is the same, or cannot be told, is only counted."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    out = StringIO()
    console = Console(file=out, width=shutil.get_terminal_size((120, 24)).columns, highlight=False, markup=False, emoji=False)
    console.print(Text(summary(found)))
    for section in _sections(found, (SAME, UNCLEAR)):
        grid = Table(title=section.title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        for title in section.titles:
            grid.add_column(Text(title), overflow="fold")
        for row in section.rows:
            grid.add_row(*map(Text, row))
        console.print(grid)
    for note in found.notes:
        console.print(Text(f"note: {clean(note)}"))
    console.print(Text(_legend(found)))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def markdown(found: Comparison, limit: int = GITHUB_LIMIT) -> str:
    """For GitHub: the summary, regressions, and the rest folded; what does not fit is counted."""
    sections = _sections(found)
    notes = [f"- {_escaped(clean(note))}" for note in found.notes]
    head, tail = [f"**effbench compare**: {summary(found)}", ""], ["", f"<sub>{_escaped(_legend(found))}</sub>"]
    left = limit - _length([*head, *tail])
    lines: list[str] = []
    # Whatever comes first may take all that is left, beside room for the frames of what comes after.
    for index, section in enumerate(sections):
        rest = 400 * (len(sections) - index)
        block = _block(
            section.title, _grid_head(section.titles), [_row(row) for row in section.rows], section.folded, left - rest
        )
        lines += block
        left -= _length(block)
    if notes:
        lines += _block("Notes", [], notes, True, left)
    return "\n".join([*head, *lines, *tail])


def as_json(found: Comparison) -> str:
    """Everything; missing values are null."""
    rows = [{str(key): _plain(str(key), value) for key, value in row.items()} for row in found.rows.to_dict("records")]
    content = {
        "summary": summary(found),
        "compared": found.compared,
        "verdicts": dict(found.verdicts),
        "relative": found.relative,
        "margins": found.margins._asdict(),
        "notes": found.notes,
        "rows": rows,
    }
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)


def as_csv(found: Comparison) -> str:
    """All rows; an empty field is a missing value."""
    return csv_of(found.rows.astype({"old_rounds": "Int64", "new_rounds": "Int64"}))


def _plain(key: str, value: Any) -> Any:
    if missing(value):
        return None
    return int(value) if key.endswith("_rounds") else value


RENDER: dict[str, Callable[[Comparison], str]] = {"table": table, "markdown": markdown, "json": as_json, "csv": as_csv}


def _sections(found: Comparison, left_out: Sequence[str] = ()) -> list[_Section]:
    """What there is to show, the most important first."""
    groups = {
        "Regressions": REGRESSIONS,
        "Improvements": IMPROVEMENTS,
        "Unclear": (UNCLEAR,),
        "The same": (SAME,),
    }
    sections = []
    for title, words in groups.items():
        rows = found.with_verdict(*(word for word in words if word not in left_out))
        if len(rows):
            shown = [_changed(row, found) for row in rows.to_dict("records")]
            sections.append(_Section(f"{title} ({len(rows)})", _TITLES, shown, folded=title != "Regressions"))
    apart = found.rows[found.rows["verdict"].isna()]
    if len(apart):
        shown = [[*_where(row, found), plain(row["metric"]), _short(row["reason"])] for row in apart.to_dict("records")]
        sections.append(_Section(f"Not compared ({len(apart)})", _REASON_TITLES, shown))
    return sections


def _changed(row: dict[Any, Any], found: Comparison) -> list[str]:
    if row["verdict"] in (FAILS, RUNS):
        return [row["verdict"], *_where(row, found), _short(row["reason"]), "", "", "", ""]
    human = _human(row["metric"], found)
    ratio = join(" ", number(row["ratio"], _three), interval(row["low"], row["high"], _three))
    counts = [number(row[f"{side}_rounds"], lambda count: f"{count:.0f}") for side in ("old", "new")]
    over = "" if missing(row["over"]) or row["over"] == "rounds" else f" ({row['over']})"
    values = [number(row["old"], human), number(row["new"], human)]
    return [row["verdict"], *_where(row, found), plain(row["metric"]), *values, ratio, f"{counts[0]} → {counts[1]}{over}"]


def _where(row: dict[Any, Any], found: Comparison) -> list[str]:
    machine = f"{row['machine']}, " if found.rows["machine"].nunique() > 1 else ""
    return [plain(row["stack"]), clean(f"{machine}{row['suite']}: {row['model']} on {row['workload']}, {row['shape']}")]


def _human(metric: str, found: Comparison) -> Callable[[float], str]:
    if metric.startswith("quality."):
        return lambda value: f"{value:.4f}"
    return (lambda value: f"{three(value)}×") if found.relative and metric.endswith(_SPEEDS) else human_of(metric)


def _three(value: float) -> str:
    return f"{value:.3f}"


def _short(reason: Any) -> str:
    text = plain(reason)
    return text if len(text) <= _ERROR else f"{text[:_ERROR]}…"


def _legend(found: Comparison) -> str:
    return _LEGEND.format(**{name: 100 * margin for name, margin in found.margins._asdict().items()})


def _block(title: str, head: Sequence[str], body: Sequence[str], folded: bool, room: int) -> list[str]:
    """A section within so many characters."""
    frame = ["<details>", f"<summary>{title}</summary>", "", "</details>", ""] if folded else [f"### {title}", "", ""]
    more = "… and {} more, left out for the length of a comment: `--format csv` has all"
    room -= _length([*frame, *head, more]) + 10
    shown: list[str] = []
    for line in body:
        room -= len(line) + 1
        if room < 0:
            break
        shown.append(line)
    left_out = len(body) - len(shown)
    rest = ["", more.format(left_out)] if left_out else []
    opening, closing = (frame[:3], frame[3:]) if folded else (frame[:2], frame[2:])
    return [*opening, *head, *shown, *rest, "", *closing]


def _length(lines: Iterable[str]) -> int:
    return sum(len(line) + 1 for line in lines)


def _grid_head(titles: Sequence[str]) -> list[str]:
    return [f"| {' | '.join(titles)} |", "|" + " --- |" * len(titles)]


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(_escaped(cell) for cell in cells)} |"


def _escaped(text: str) -> str:
    """Text that neither Markdown nor HTML reads as its own; what GitHub could take for people or issues is code."""
    written = _MARKUP.sub(lambda found: "".join(f"&#{ord(c)};" for c in found[0]), text)
    return f"<code>{written}</code>" if "@" in text or "#" in text else written
