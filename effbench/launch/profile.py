"""Profiles of cells: each runs once in a warm worker like a trial, the profiler its only meter, and leaves no record."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from effbench.launch.orchestrate import findings
from effbench.launch.requests import Sources, start_message, timeout_s, trial_request
from effbench.launch.worker import Worker
from effbench.plan.plan import Plan
from effbench.plugin.catalog import Catalog
from effbench.plugin.cell import Cell, Sampling
from effbench.plugin.launcher import Launcher
from effbench.store.profile import PartProfile, read_profiles

_SHORT = {
    "steps": 2,
    "quality_documents": 1,
    "sampling": Sampling(min_samples=2, min_seconds=0, max_seconds=1e-6),
}
"""What a trial runs before the profiler does: enough for everything to be built, compiled and loaded."""


@dataclass(frozen=True)
class CellProfile:
    """What one cell came to."""

    cell: Cell
    parts: list[PartProfile]
    """Of rank 0; empty where the trial failed before the first part ended."""
    error: str | None


def profile_cells(  # noqa: PLR0913, PLR0917 - a plan with its catalog and sources, and where to
    plan: Plan,
    catalog: Catalog,
    sources: Sources,
    launcher: Launcher,
    cells: Sequence[Cell],
    out: Path,
    on_phase: Callable[[str], None],
) -> Iterator[CellProfile]:
    """Profile each cell into `out/<cell id>/<part>/`, in place of an earlier profile of it there."""
    workers: dict[int, Worker] = {}
    try:
        for cell in cells:
            if cell.world_size not in workers:
                alike = [c for c in cells if c.world_size == cell.world_size]
                start = start_message(plan, catalog, sources, alike)
                workers[cell.world_size] = Worker(launcher, cell.world_size, start)
            folder = out.resolve() / cell.id
            _remove_earlier(folder)
            short = cell.model_copy(update=_SHORT).model_dump(mode="json")
            request = trial_request(plan, cell, 1) | {"cell": short, "profile": str(folder)}
            worker, limit = workers[cell.world_size], timeout_s(plan, cell, catalog)
            found, _ = findings(worker.run(request, limit, on_phase), limit)
            yield CellProfile(cell, list(read_profiles(folder)), None if found["status"] == "ok" else found["error"])
    finally:
        for worker in workers.values():
            worker.close()
        launcher.close()


def _remove_earlier(folder: Path) -> None:
    """Two traces of one rank in one folder would show as two spans of one run."""
    for pattern in ("*/*.pt.trace.json.gz", "*/operators.rank*.json"):
        for file in folder.glob(pattern):
            file.unlink()
