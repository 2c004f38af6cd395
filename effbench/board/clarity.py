"""Which cells another round is worth: those whose speed is still UNCLEAR, and the baseline's that they are paired with."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from effbench.board.rows import row_label
from effbench.board.verdict import SAME, SPEED
from effbench.plugin.cell import Cell

if TYPE_CHECKING:
    from effbench.board.leaderboard import Leaderboard

LOOKS = (3, 5, 8, 12, 20)
"""Rounds after which `--until-clear` looks at the board."""
_SPEEDS = ("train_speed", "prefill_speed", "decode_speed")
_CLEAR = frozenset({*SPEED, SAME, "baseline"})


def next_look(rounds: int) -> int | None:
    """The next number of rounds to look at; None after the last."""
    return next((look for look in LOOKS if look > rounds), None)


def unclear(boards: Sequence["Leaderboard"], cells: Iterable[Cell]) -> set[str]:
    """Ids of the cells whose row has an UNCLEAR speed, at every shape of the board, and of the baseline's cells there.

    A row without any figure, because all its trials failed, is not worth another round.
    """
    planned = list(cells)
    found: set[str] = set()
    for board in boards:
        here = [
            cell for cell in planned if (cell.suite, cell.model, cell.workload) == (board.suite, board.model, board.workload)
        ]
        entries = {str(entry["stack"]): entry for entry in board.rows.to_dict("records")}
        wanted = [cell for cell in here if cell.world_size == board.world_size and _unclear(entries.get(_label(cell)))]
        found |= {cell.id for cell in wanted}
        if wanted:
            # At a larger world size the baseline may exist at a single rank alone.
            found |= {c.id for c in here if c.stack == board.baseline and c.world_size in (1, board.world_size)}
    return found


def _label(cell: Cell) -> str:
    return row_label(cell.stack, cell.option_axes)


def _unclear(entry: dict[Any, Any] | None) -> bool:
    if entry is None:
        return False
    measured = [key for key in _SPEEDS if entry[key] == entry[key] and entry[key] is not None]
    # A row without a verdict beside a value has no round in common with its baseline yet.
    return any(entry[f"{key}_verdict"] not in _CLEAR for key in measured)
