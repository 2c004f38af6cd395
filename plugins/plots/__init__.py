"""Plots of leaderboards, as SVG and PNG. Importing it needs no matplotlib."""

import importlib.util
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from effbench.plugin import InputError, Reporter, hookimpl
from effbench.plugin.reporter import slug

if TYPE_CHECKING:
    from effbench.board.leaderboard import Leaderboard

    from .plot import Plot


class PlotsReporter(Reporter):
    """Quality against speed and size, cost by length, speedup by ranks, where a board has data."""

    name: ClassVar = "plots"

    def files(self, boards: "list[Leaderboard]") -> dict[str, bytes]:
        """`plots/MACHINE/SUITE/BOARD-KIND.svg` and `.png`."""
        plots = dict(_named(boards))
        if not plots:
            return {}
        if importlib.util.find_spec("matplotlib") is None:
            raise InputError("format 'plots' needs matplotlib: pip install 'effbench[plots]'")
        from .style import drawn

        return {f"{name}.{ending}": content for name, plot in plots.items() for ending, content in drawn(plot).items()}


def _named(boards: "list[Leaderboard]") -> "Iterator[tuple[str, Plot[Any]]]":
    """Plots by names that are safe in any file system and any link, whatever the board is called; each once."""
    taken: set[str] = set()
    for board in boards:
        for plot in plots_of(board):
            board_name = slug(board.title.removeprefix(f"{board.suite}: "))
            wanted = f"plots/{slug(board.machine)}/{slug(board.suite)}/{board_name}-{plot.kind}"
            name, number = wanted, 1
            while name in taken:
                number += 1
                name = f"{wanted}-{number}"
            taken.add(name)
            yield name, plot


def plots_of(board: "Leaderboard") -> "list[Plot[Any]]":
    """Those that a board has data for."""
    from .lengths import length_plots
    from .tradeoff import tradeoff_plots
    from .world_sizes import world_size_plots

    return [*tradeoff_plots(board), *length_plots(board), *world_size_plots(board)]


@hookimpl
def register_reporters(register: Callable[[type[Reporter]], None]) -> None:
    """Register the plots."""
    register(PlotsReporter)
