"""Formats of leaderboards. Every text that comes from a record is taken for hostile."""

import json
import math
import shutil
from collections.abc import Callable, Iterable
from io import StringIO
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from effbench.plugin import Reporter, hookimpl

if TYPE_CHECKING:
    from effbench.board.leaderboard import Leaderboard

Entry = dict[str, Any]
MISSING = "–"
_BASELINE = "1× (baseline)"


class Column(NamedTuple):
    """One shown column; left out where no row has anything to show."""

    title: str
    show: Callable[[Entry], str]
    news: Callable[[list[Entry]], bool] = lambda entries: True
    """Whether it says more than the others, in a table that is wide already."""


def _speed(title: str, key: str) -> Column:
    return Column(title, lambda entry: _ratio(entry, key, " "))


def _size(title: str, key: str, human: Callable[[float], str], news: Callable[[list[Entry]], bool] = lambda _: True) -> Column:
    def show(entry: Entry) -> str:
        ratio = _ratio(entry, key, "\n")
        return _join(" ", _number(entry[key], human), "" if ratio == _BASELINE else ratio)

    return Column(title, show, news)


def _any_other(key: str) -> Callable[[list[Entry]], bool]:
    """Whether some row is not the same as the baseline."""
    return lambda entries: any(_plain(entry[f"{key}_verdict"]) not in (MISSING, "baseline", "SAME") for entry in entries)


def _any_zeros(entries: list[Entry]) -> bool:
    """Whether leaving zeros out makes some row smaller by more than a percent."""
    return any(
        not _missing(e["sparse"]) and not _missing(e["checkpoint"]) and e["sparse"] < 0.99 * e["checkpoint"] for e in entries
    )


_ROW = [Column("rank", lambda e: _plain(e["rank"])), Column("stack", lambda e: _plain(e["stack"]))]
_SPEED = [
    Column("techniques", lambda e: _plain(e["techniques"])),
    _speed("train speed", "train_speed"),
    _speed("prefill speed", "prefill_speed"),
    _speed("decode speed", "decode_speed"),
    Column("cells", lambda e: _plain(e["cells"])),
    Column("status", lambda e: _plain(e["status"])),
]


def _tables(board: "Leaderboard") -> list[tuple[list[str], list[list[str]]]]:
    """Titles and cells of the tables a board is shown as: speed, what it costs, what is kept."""
    cost = [
        _size("train memory", "train_memory", _bytes),
        _size("infer memory", "infer_memory", _bytes),
        _size("trainable", "trainable", _count),
        Column("steps", lambda e: _number(e["steps"], lambda x: f"{x:.0f}")),
        Column(_clean(board.quality_metric), _quality),
    ]
    bytes_kept = [
        _size("checkpoint", "checkpoint", _bytes),
        _size("without zeros", "sparse", _bytes, _any_zeros),
        Column("bits/weight", lambda e: _number(e["bits"], lambda x: f"{x:.3g}"), _any_other("bits")),
        _size("delta", "delta", _bytes),
        _size("KV cache", "kv_cache", _bytes, _any_other("kv_cache")),
    ]
    entries = [{str(key): value for key, value in entry.items()} for entry in board.rows.to_dict("records")]
    tables = []
    for wanted in (_ROW + _SPEED, _ROW[1:] + cost, _ROW[1:] + bytes_kept):
        columns = [c for c in wanted if c in _ROW or (c.news(entries) and any(c.show(entry) != MISSING for entry in entries))]
        tables.append(([c.title for c in columns], [[c.show(entry) for c in columns] for entry in entries]))
    return [(titles, cells) for titles, cells in tables if len(titles) > 1]


def _heading(board: "Leaderboard") -> list[str]:
    first, last = board.rounds
    rounds = f"{last}" if first == last else f"{first} to {last}"
    lines = [
        board.title,
        f"machine {board.machine} · suite {board.suite} · model {board.model} · workload {board.workload} · rounds {rounds}",
        f"baseline {board.baseline or MISSING} · ranked by {board.ranked_by or MISSING} · δ = {_percent(board)}",
    ]
    return [_clean(line) for line in lines]


def _percent(board: "Leaderboard") -> str:
    return f"{100 * board.delta:g} %"


def _legend(board: "Leaderboard") -> str:
    return (
        "Ratios to the baseline, 95 % intervals over rounds. Speed: above 1× is better; memory, parameters, bytes: below 1× "
        "is better. FASTER, SLOWER, SMALLER, LARGER, BETTER, WORSE: the interval, adjusted for looks and stacks, lies wholly "
        f"beyond {_percent(board)}; SAME: wholly within; UNCLEAR: the data cannot tell. Rank: from 1 + the rows clearly better "
        f"to N - the rows clearly worse. {MISSING}: not measured."
    )


class TableReporter(Reporter):
    """Tables for a terminal."""

    name: ClassVar = "table"

    def render(self, boards: "list[Leaderboard]") -> str:
        """As wide as the terminal, 120 columns where there is none."""
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        out = StringIO()
        width = shutil.get_terminal_size((120, 24)).columns
        # Text objects are never read as markup, so names such as "[red]" or ":smile:" stay what they are.
        console = Console(file=out, width=width, highlight=False, markup=False, emoji=False)
        for board in boards:
            for line in _heading(board):
                console.print(Text(line))
            for titles, cells in _tables(board):
                table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
                for title in titles:
                    table.add_column(Text(title), overflow="fold")
                for row in cells:
                    table.add_row(*map(Text, row))
                console.print(table)
            for note in board.notes:
                console.print(Text(f"note: {_clean(note)}"))
            console.print(Text(_legend(board)))
            console.print()
        return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


class MarkdownReporter(Reporter):
    """GitHub's Markdown."""

    name: ClassVar = "markdown"

    def render(self, boards: "list[Leaderboard]") -> str:
        """One section per board."""
        lines = ["# Leaderboard", ""]
        for board in boards:
            title, *details = map(_markdown, _heading(board))
            lines += [f"## {title}", "", *(f"{detail}  " for detail in details), ""]
            for titles, cells in _tables(board):
                rows = [titles, ["---"] * len(titles), *cells]
                lines += [_markdown_row(row) for row in rows] + [""]
            lines += [f"- {_markdown(_clean(note))}" for note in board.notes]
            lines += ["", _legend(board), ""]
        return "\n".join(lines)


class CsvReporter(Reporter):
    """All numbers of all boards in one table."""

    name: ClassVar = "csv"

    def render(self, boards: "list[Leaderboard]") -> str:
        """Identifying columns first; an empty field is a missing value."""
        import pandas as pd

        from effbench.board.table import columns

        identity = ["machine", "suite", "model", "workload", "title", "baseline"]
        entries = [
            {name: getattr(board, name) for name in identity} | {str(key): value for key, value in row.items()}
            for board in boards
            for row in board.rows.to_dict("records")
        ]
        return str(pd.DataFrame(entries, columns=[*identity, *columns()]).to_csv(index=False))


class JsonReporter(Reporter):
    """A list of boards, each with its notes and rows."""

    name: ClassVar = "json"

    def render(self, boards: "list[Leaderboard]") -> str:
        """Missing values are null."""
        return json.dumps([_plain_board(board) for board in boards], indent=2, ensure_ascii=False, allow_nan=False)


def _plain_board(board: "Leaderboard") -> dict[str, Any]:
    rows = [{str(key): _or_none(value) for key, value in row.items()} for row in board.rows.to_dict("records")]
    fields = {name: value for name, value in vars(board).items() if name != "rows"}
    return fields | {"rounds": list(board.rounds), "rows": rows}


def _or_none(value: Any) -> Any:
    return None if _missing(value) else value


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def _plain(value: Any) -> str:
    return MISSING if _missing(value) else _clean(str(value)) or MISSING


def _number(value: Any, human: Callable[[float], str]) -> str:
    return MISSING if _missing(value) else human(value)


def _ratio(entry: Entry, key: str, gap: str) -> str:
    """`1.23× [1.18, 1.29] FASTER`."""
    if entry[f"{key}_verdict"] == "baseline":
        return _BASELINE
    return _with_interval(_number(entry[f"{key}_ratio"], lambda x: f"{_three(x)}×"), entry, key, _three, gap)


def _quality(entry: Entry) -> str:
    score = _number(entry["quality"], lambda x: f"{x:.3f}")
    difference = _number(entry["quality_difference"], _signed)
    if entry["quality_verdict"] == "baseline" or difference == MISSING:
        return score
    return _with_interval(f"{score} ({difference})", entry, "quality", _signed, "\n")


def _with_interval(estimate: str, entry: Entry, key: str, human: Callable[[float], str], gap: str) -> str:
    """Line breaks are where a narrow table breaks; elsewhere they become spaces."""
    if estimate == MISSING:
        return MISSING
    low, high, word = (entry[f"{key}_{part}"] for part in ("low", "high", "verdict"))
    interval = "" if _missing(low) or _missing(high) else f"[{human(low)}, {human(high)}]"
    return _join("\n", _join(gap, estimate, interval), _plain(word))


def _join(gap: str, *parts: str) -> str:
    return gap.join(part for part in parts if part not in ("", MISSING)) or MISSING


def _signed(value: float) -> str:
    return f"{value:+.3f}"


def _three(value: float) -> str:
    """Two decimals, or three significant digits where that is more."""
    return f"{value:.2f}" if value >= 0.1 else f"{value:.3g}"


def _bytes(value: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:.4g} TiB"


def _count(value: float) -> str:
    for unit in ("", "K", "M"):
        if value < 1000:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.4g}B"


def _clean(text: str) -> str:
    """One line without control characters: escape sequences in a record must not reach a terminal."""
    return "".join(c if c.isprintable() else "�" for c in " ".join(text.split()))


def _markdown(text: str) -> str:
    for character in "\\`|[]*":
        text = text.replace(character, f"\\{character}")
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _markdown_row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell if cell == "---" else _markdown(cell.replace("\n", " ")) for cell in cells) + " |"


@hookimpl
def register_reporters(register: "Callable[[type[Reporter]], None]") -> None:
    """Register the standard formats."""
    for reporter in (TableReporter, MarkdownReporter, CsvReporter, JsonReporter):
        register(reporter)
