"""The block of a README that shows a suite's leaderboard."""

import os
from collections.abc import Iterable
from pathlib import Path

from effbench.plugin.errors import InputError
from effbench.plugin.reporter import slug

BEGIN, END = b"<!-- effbench:board -->", b"<!-- /effbench:board -->"


def updated(readme: Path, block: str) -> tuple[bytes, bytes]:
    """The README as it is, and with the block between its two markers; every other byte stays."""
    try:
        old = readme.read_bytes()
    except OSError as error:
        raise InputError(f"--readme {readme}: cannot be read ({error.strerror})") from error
    begin, end = old.find(BEGIN), old.find(END)
    if old.count(BEGIN) != 1 or old.count(END) != 1 or end < begin:
        raise InputError(
            f"--readme {readme}: put the line {BEGIN.decode()} once, and after it {END.decode()}, where the board goes"
        )
    return old, old[: begin + len(BEGIN)] + b"\n" + block.strip("\n").encode() + b"\n" + old[end:]


def block(table: str, plot: str | None, folder: Path, readme: Path) -> str:
    """A Markdown table without its top heading, and a plot by a link that is relative to the README."""
    title = "# Leaderboard\n"
    lines = [table.removeprefix(title).strip("\n")]
    if plot:
        where = Path(os.path.relpath(folder.resolve() / plot, readme.resolve().parent)).as_posix()
        lines += ["", f"![{Path(plot).stem}]({where.replace(' ', '%20').replace('(', '%28').replace(')', '%29')})"]
    return "\n".join(lines)


def plot_of(names: Iterable[str], suite: str | None, kind: str) -> str:
    """The first published SVG of a suite and a kind, e.g. `compression`; InputError that names those there are."""
    plots = [name for name in names if name.endswith(".svg") and (suite is None or slug(suite) in name.split("/")[:-1])]
    if found := next((name for name in plots if name.endswith(f"-{kind}.svg")), None):
        return found
    known = ", ".join(Path(name).stem for name in plots) or "none: is `plots` among the formats?"
    raise InputError(f"--readme-plot {kind}: no plot's name ends so; there are {known}")
