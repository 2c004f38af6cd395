"""Which cells another round is worth: those whose speed is still UNCLEAR, and the baseline's that they are paired with."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from effbench.board.verdict import UNCLEAR
from effbench.plugin.cell import Cell

if TYPE_CHECKING:
    from effbench.board.leaderboard import Leaderboard

LOOKS = (3, 5, 8, 12, 20)
"""Rounds after which `--until-clear` looks at the board."""
_SPEEDS = ("train_speed", "prefill_speed", "decode_speed")


def next_look(rounds: int) -> int | None:
    """The next number of rounds to look at; None after the last."""
    return next((look for look in LOOKS if look > rounds), None)


def unclear(boards: Sequence["Leaderboard"], cells: Iterable[Cell]) -> set[str]:
    """Ids of the cells whose row has an UNCLEAR speed, at every shape of the board, and of the baseline's cells there.

    Only of the planned `cells`: what was measured with other settings or an older learning rate stands on boards and in rows
    of its own. A row or a baseline without any figure, because all its trials failed, is not worth another round; one whose
    trials were all disturbed is.
    """
    planned = {cell.id for cell in cells}
    found: set[str] = set()
    for board in boards:
        words = board.rows.set_index("stack")[[f"{key}_verdict" for key in _SPEEDS]]
        labels = words.index[(words == UNCLEAR).any(axis=1)]
        if wanted := planned.intersection(name for label in labels for name in board.cells[label]):
            found |= wanted | planned.intersection(board.baseline_cells)
    return found
