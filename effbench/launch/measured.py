"""What of a plan is measured already, as records tell."""

from collections import defaultdict
from collections.abc import Collection, Mapping

from effbench.launch.out_of_memory import OutOfMemory
from effbench.plan.memory import PREDICTED
from effbench.plan.plan import Plan
from effbench.store.record import Fingerprint, Record


class Measured:
    """Which sessions measured what; records count where the present code made them."""

    def __init__(
        self, plan: Plan, current: Mapping[str, Fingerprint], records: Collection[Record], *, retry_failed: bool
    ) -> None:
        self._plan, self._retry_failed = plan, retry_failed
        of_now = [record for record in records if record.fingerprint == current.get(record.cell_id)]
        self.out_of_memory = OutOfMemory(plan.phase_skips)
        for record in () if retry_failed else of_now:
            if record.status == "oom":
                self.out_of_memory.add(record.cell)
        self.sessions: dict[tuple[str, int], set[str]] = defaultdict(set)
        """(cell id, round) → the sessions that have a record of it that stands."""
        self.seconds: dict[str, float] = {}
        """Longest trial of each cell."""
        for record in filter(self._stands, of_now):
            self.sessions[record.cell_id, record.round].add(record.session)
            self.seconds[record.cell_id] = max(record.wall_s, self.seconds.get(record.cell_id, 0.0))

    def lost(self) -> set[str]:
        """Ids of the cells that will not be launched."""
        return {cell.id for cell in self._plan.cells if self.out_of_memory.reason(cell)}

    def _stands(self, record: Record) -> bool:
        """Whether a record stands for its trial, which then need not be tried again."""
        good = record.status == "ok" and not record.dirty
        possible_now = record.status == "skipped" and not self.out_of_memory.reason(record.cell)
        return (good or not (possible_now or self._retry_failed)) and not self._fits_by_now(record)

    def _fits_by_now(self, record: Record) -> bool:
        """Whether a phase was left out for lack of memory that the plan now measures: the limit, or the machine, has grown."""
        planned = self._plan.phase_skips.get(record.cell_id, {})
        return any(how.startswith(f"skipped: {PREDICTED}") and phase not in planned for phase, how in record.phases.items())
