"""Formats that leaderboards can be shown in."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

from effbench.plugin.layout import WIDTH, Section, in_terminal

if TYPE_CHECKING:
    from effbench.board.leaderboard import Leaderboard

_LONGEST_SLUG = 80


def slug(text: str) -> str:
    """A name of lower-case ASCII letters, digits, dots and dashes, fit for a file: never empty, hidden or a path."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")[:_LONGEST_SLUG].strip("-.") or "board"


class Reporter(ABC):
    """One output format: leaderboards as files."""

    name: ClassVar[str]

    @abstractmethod
    def files(self, boards: "list[Leaderboard]") -> dict[str, bytes]:
        """Contents by file name (`/` between folders); empty where these boards have nothing for this format."""


class TextReporter(Reporter):
    """A format whose single file is text, so that it can be printed as well."""

    file: ClassVar[str]
    """Its name."""

    @abstractmethod
    def render(self, boards: "list[Leaderboard]") -> str:
        """All boards as one text."""

    def files(self, boards: "list[Leaderboard]") -> dict[str, bytes]:
        """The text as a file."""
        return {self.file: self.render(boards).encode()}


class TerminalReporter(TextReporter):
    """Sections for a terminal."""

    @abstractmethod
    def sections(self, boards: "list[Leaderboard]") -> Iterable[Section]:
        """What is shown."""

    def render(self, boards: "list[Leaderboard]") -> str:
        """As wide as the terminal."""
        return in_terminal(self.sections(boards))

    def files(self, boards: "list[Leaderboard]") -> dict[str, bytes]:
        """Of one width, whatever terminal it is written from."""
        return {self.file: in_terminal(self.sections(boards), WIDTH).encode()}
