"""Which cells are not launched, because the same at a smaller shape ran out of memory."""

from collections import defaultdict
from collections.abc import Mapping

from effbench.plugin.cell import Cell, canonical_json


class OutOfMemory:
    """The cells that ended as `oom`, and what follows from them.

    Memory grows with sequences and batches. So where a cell ran out of it, neither that one again nor any that differs from it
    only in being larger is worth a trial. A cell of other phases is not the same: training may have been what did not fit.
    """

    def __init__(self, phase_skips: Mapping[str, Mapping[str, str]]) -> None:
        self._phase_skips = phase_skips
        self._ended: dict[str, list[Cell]] = defaultdict(list)

    def add(self, cell: Cell) -> None:
        """This cell ran out of memory."""
        self._ended[self._kind(cell)].append(cell)

    def reason(self, cell: Cell) -> str | None:
        """Why a cell need not be launched, or None."""
        alike = self._ended.get(self._kind(cell), ()) if self._ended else ()
        smaller = [ended for ended in alike if ended.seq_len <= cell.seq_len and ended.batch_size <= cell.batch_size]
        if not smaller:
            return None
        if cell in smaller:
            return "it ran out of memory before"
        shapes = [
            f"{name} {getattr(smaller[0], name)}"
            for name in ("seq_len", "batch_size")
            if getattr(smaller[0], name) < getattr(cell, name)
        ]
        return f"a smaller cell, {', '.join(shapes)}, ran out of memory"

    def _kind(self, cell: Cell) -> str:
        """All that a cell is but its shape, and the phases it has."""
        kind = cell.model_dump(mode="json", exclude={"seq_len", "batch_size"})
        return canonical_json([kind, sorted(self._phase_skips.get(cell.id, ()))])
