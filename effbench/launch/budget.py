"""How long a run may take, and whether one more trial fits."""

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from effbench.plugin.errors import InputError

_UNITS = {"h": 3600, "m": 60, "s": 1}
_WORKER_START_S = 15.0
"""Of a worker that is not warm yet: mostly imports, twice under torchrun."""


def parse_duration(text: str, option: str = "budget") -> float:
    """Seconds of `90s`, `10m`, `2h` or `1h30m`; InputError for anything else."""
    found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text.strip().lower())
    seconds = sum(int(part or 0) * unit for part, unit in zip(found.groups(), _UNITS.values(), strict=True)) if found else 0
    if not seconds:
        raise InputError(f"{option} {text!r}: expected hours, minutes and seconds, for instance 90s, 10m or 1h30m")
    return float(seconds)


@dataclass
class Budget:
    """Seconds a run may take from now on; none set means no limit."""

    seconds: float | None = None
    clock: Callable[[], float] = time.monotonic
    seen: dict[str, float] = field(default_factory=dict)
    """Longest trial of each cell so far, in seconds."""

    def __post_init__(self) -> None:
        """The time starts."""
        self._started = self.clock()

    def left(self) -> float | None:
        """Seconds; None without a limit."""
        return None if self.seconds is None else self.seconds - (self.clock() - self._started)

    def learn(self, seconds: Mapping[str, float]) -> None:
        """Take durations of trials into account."""
        for cell_id, took in seconds.items():
            self.seen[cell_id] = max(took, self.seen.get(cell_id, 0.0))

    def allows(self, cell_id: str, *, warm: bool) -> bool:
        """Whether one more trial of a cell will probably end in time; one never seen may take as long as the longest."""
        left = self.left()
        if left is None:
            return True
        expected = self.seen.get(cell_id, max(self.seen.values(), default=0.0))
        return expected + (0.0 if warm else _WORKER_START_S) <= left
