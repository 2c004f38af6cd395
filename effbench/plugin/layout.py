"""Sections of tables and notes as one text, for a terminal and in Markdown."""

import shutil
from collections.abc import Iterable
from io import StringIO
from typing import NamedTuple

from effbench.plugin.text import clean, markdown, markdown_row

Table = tuple[list[str], list[list[str]]]
"""Titles and rows of cells."""
WIDTH = 120
"""Columns where there is no terminal."""


class Section(NamedTuple):
    """What belongs together, such as a board."""

    heading: list[str]
    """Its title and further lines."""
    tables: list[Table]
    notes: list[str]
    legend: str


def in_terminal(sections: Iterable[Section], width: int | None = None) -> str:
    """Tables of at most so many columns of text; as wide as the terminal where none are given."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as Grid
    from rich.text import Text

    out = StringIO()
    # Text objects are never read as markup, so names such as "[red]" or ":smile:" stay what they are.
    width = width or shutil.get_terminal_size((WIDTH, 24)).columns
    console = Console(file=out, width=width, highlight=False, markup=False, emoji=False)
    for section in sections:
        for line in section.heading:
            console.print(Text(clean(line)))
        for titles, cells in section.tables:
            grid = Grid(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
            for title in titles:
                grid.add_column(Text(title), overflow="fold")
            for row in cells:
                grid.add_row(*map(Text, row))
            console.print(grid)
        for note in section.notes:
            console.print(Text(f"note: {clean(note)}"))
        if section.legend:
            console.print(Text(section.legend))
        console.print()
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def in_markdown(title: str, sections: Iterable[Section]) -> str:
    """GitHub's Markdown, a heading for each section."""
    lines = [f"# {title}", ""]
    for section in sections:
        name, *details = (markdown(clean(line)) for line in section.heading)
        blocks = [[f"## {name}"], [f"{detail}  " for detail in details]]
        for titles, cells in section.tables:
            blocks.append([markdown_row(row) for row in (titles, ["---"] * len(titles), *cells)])
        blocks += [[f"- {markdown(clean(note))}" for note in section.notes], [section.legend] if section.legend else []]
        lines += [line for block in blocks if block for line in (*block, "")]
    return "\n".join(lines)
