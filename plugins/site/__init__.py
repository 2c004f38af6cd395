"""The leaderboards as one page: no server, nothing fetched, works from a file."""

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from effbench.plugin import Reporter, TextReporter, hookimpl

if TYPE_CHECKING:
    from effbench.board.leaderboard import Leaderboard


class HtmlReporter(TextReporter):
    """One self-contained page: sortable leaderboards, plots, every round's values, claims, definitions."""

    name: ClassVar = "html"
    file: ClassVar = "index.html"

    def render(self, boards: "list[Leaderboard]") -> str:
        """A pure function of the records: the same ones give the same page."""
        from effbench.plugin.discovery import discover

        from .data import site_data
        from .page import page

        return page(site_data(boards, discover()))


@hookimpl
def register_reporters(register: Callable[[type[Reporter]], None]) -> None:
    """Register the page."""
    register(HtmlReporter)
