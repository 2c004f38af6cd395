"""Tables of the same on several machines: a column for each, and nothing ranked across them."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from effbench.plugin.layout import Section
from effbench.plugin.text import MISSING, clean, join, plain

from .tables import Column, Entry, laid_out, quality, ratio

if TYPE_CHECKING:
    from effbench.board.leaderboard import Leaderboard
    from effbench.board.machines import SideBySide

_LEGEND = (
    "Each machine's ratios are to its own baseline, measured on it, and its ranks are among its own rows: machines are never "
    "ranked against each other, and a ratio on one says nothing of how fast the other is."
)


def machine_sections(boards: "list[Leaderboard]") -> list[Section]:
    """Empty where all boards are of one machine."""
    from effbench.board.machines import side_by_side

    return [_section(table) for table in side_by_side(boards)]


def _section(table: "SideBySide") -> Section:
    heading = [
        f"machines side by side: {table.title}",
        f"suite {table.suite} · model {table.model} · workload {table.workload} · machines {', '.join(table.machines)}",
        f"baseline {table.baseline or MISSING} on each machine · ranked by {table.metric or MISSING}",
    ]
    entries: dict[str, Entry] = {}
    for row in table.rows.to_dict("records"):
        entries.setdefault(row["stack"], {"stack": row["stack"]})[row["machine"]] = row
    found = [
        laid_out([Column(title, lambda e: plain(e["stack"]))], _columns(table, show), list(entries.values()))
        for title, show in ((f"{clean(table.metric or '')} on", _speed), (f"{clean(table.quality_metric)} on", quality))
    ]
    return Section([clean(line) for line in heading], [shown for shown in found if shown], table.notes, _LEGEND)


def _columns(table: "SideBySide", show: Callable[[Entry], str]) -> list[Column]:
    """One for each machine, empty where it did not measure a stack."""
    return [_column(machine, show) for machine in table.machines]


def _column(machine: str, show: Callable[[Entry], str]) -> Column:
    return Column(clean(machine), lambda e: show(e[machine]) if machine in e else MISSING)


def _speed(entry: Entry) -> str:
    """`1.23× [1.18, 1.29] FASTER`, and the rank or why there is none."""
    of_speed = {f"speed_{part}": entry[part] for part in ("ratio", "low", "high", "verdict")}
    shown = ratio(of_speed, "speed", " ")
    rank = plain(entry["rank"])
    return join("\n", shown, f"rank {rank}" if rank != MISSING else plain(entry["status"]).replace("ok", MISSING))
