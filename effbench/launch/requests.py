"""What the orchestrating half asks of a worker, as JSON."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from effbench.plan.plan import Plan, techniques_of
from effbench.plan.suite import Suite
from effbench.plugin.catalog import Catalog
from effbench.plugin.cell import Cell

_SEEDS_PER_ROUND = 1000  # so that no round's seed is near another suite seed's


@dataclass(frozen=True)
class Sources:
    """Where plugins beyond the bundled and installed ones come from, for the worker to load them too."""

    files: Sequence[Path] = ()
    folders: Sequence[Path] = ()


def start_message(plan: Plan, catalog: Catalog, sources: Sources, cells: Sequence[Cell]) -> dict[str, Any]:
    """What a worker must know to warm up for these cells."""
    return {
        "files": [str(file) for file in sources.files],
        "folders": [str(folder) for folder in sources.folders],
        "models": {cell.model: plan.models[cell.model] for cell in cells},
        "workloads": {cell.workload: plan.workloads[cell.workload] for cell in cells},
        "trust_remote_code": plan.suite.trust_remote_code,
        "imports": sorted({module for cell in cells for t in techniques_of(cell, catalog) for module in t.imports}),
    }


def trial_request(plan: Plan, cell: Cell, round_number: int) -> dict[str, Any]:
    """One trial of a cell.

    Probes run in its first round alone: they run the model once more under an instrument, and count the same each time.
    """
    memory = plan.suite.limits.memory_gb
    return {
        "cell": cell.model_dump(mode="json"),
        "seed": seed_of(plan.suite, round_number),
        "meters": plan.suite.meters,
        "probe": round_number == 1,
        "split": "test",
        "phase_skips": plan.phase_skips.get(cell.id, {}),
        "memory_bytes": None if memory is None else int(memory * 2**30),
    }


def timeout_s(plan: Plan, cell: Cell, catalog: Catalog) -> float:
    """After how long a trial of this cell is ended: a stack that compiles has time of its own for that."""
    limits = plan.suite.limits
    return limits.timeout_s + (limits.compile_s if any(t.compiles for t in techniques_of(cell, catalog)) else 0.0)


def seed_of(suite: Suite, round_number: int) -> int:
    """The seed that all stacks share in a round."""
    return suite.seed + _SEEDS_PER_ROUND * round_number
