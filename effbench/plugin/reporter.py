"""Formats a leaderboard can be shown in."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from effbench.board.leaderboard import Leaderboard


class Reporter(ABC):
    """One output format of `effbench board`."""

    name: ClassVar[str]

    @abstractmethod
    def render(self, boards: "list[Leaderboard]") -> str:
        """All boards as one text."""
