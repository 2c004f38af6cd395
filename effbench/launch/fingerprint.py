"""What makes a record current: the present code, weights, text and libraries. Computed without torch."""

from functools import cache
from importlib import metadata

from effbench.plan.plan import Plan
from effbench.plugin.catalog import Catalog
from effbench.plugin.cell import Cell
from effbench.store.record import Fingerprint


class Fingerprints:
    """Fingerprints of cells; weights and texts are hashed once."""

    def __init__(self, plan: Plan, catalog: Catalog) -> None:
        self._plan, self._catalog = plan, catalog
        self._weights: dict[str, str] = {}
        self._data: dict[str, str] = {}

    def of(self, cell: Cell) -> Fingerprint:
        """The fingerprint a record of this cell would have now."""
        if cell.model not in self._weights:
            self._weights[cell.model] = self._catalog.model(self._plan.models[cell.model]).weights_hash()
        if cell.workload not in self._data:
            self._data[cell.workload] = self._catalog.workload(self._plan.workloads[cell.workload]).data_hash()
        names = [name for name, _ in cell.techniques]
        libraries = {"torch", "transformers"}.union(*(self._catalog.techniques.get(name).requires for name in names))
        return Fingerprint(
            techniques={name: self._catalog.technique_hash(name) for name in names},
            weights=self._weights[cell.model],
            data=self._data[cell.workload],
            versions={library: _version(library) for library in sorted(libraries)},
        )


@cache
def _version(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return "absent"  # the plan skips cells that need it
