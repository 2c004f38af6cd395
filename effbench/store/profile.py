"""What a profile found in one part of a trial: time by operator, beside the trace that TensorBoard opens."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict

Part = Literal["train", "prefill", "decode"]
PARTS: tuple[Part, ...] = get_args(Part)
Kind = Literal[
    "matmul",
    "attention",
    "elementwise",
    "normalisation",
    "memory/copy",
    "optimizer",
    "communication",
    "other",
    "outside operators",
]
KINDS: tuple[Kind, ...] = get_args(Kind)


class Operator(BaseModel):
    """One operator of one kind; its own time, without that of the operators it calls."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    kind: Kind
    calls: float
    """Per step."""
    seconds: float
    """Per step, while the profiler ran: on the GPU where the cell has one, otherwise on the CPU, all threads together."""


class PartProfile(BaseModel):
    """One part on one rank. A step is one optimisation step, one prefill, or one decoded token."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    part: Part
    rank: int
    device: Literal["cpu", "cuda"]
    steps: int
    """Recorded; warm-up is not among them."""
    operators: list[Operator]
    """Longest first."""

    @property
    def seconds(self) -> float:
        """Of all operators, per step."""
        return sum(operator.seconds for operator in self.operators)

    def share(self, kind: Kind) -> float:
        """Of the time, 0 to 1."""
        return sum(operator.seconds for operator in self.operators if operator.kind == kind) / self.seconds


def write_profile(profile: PartProfile, folder: Path) -> None:
    """Put it beside the trace."""
    (folder / f"operators.rank{profile.rank}.json").write_text(profile.model_dump_json(indent=1) + "\n")


def read_profiles(folder: Path, rank: int = 0) -> Iterator[PartProfile]:
    """Every part that one rank left below a folder, in the order of a trial; those that were not run are missing."""
    for part in PARTS:
        file = folder / part / f"operators.rank{rank}.json"
        if file.exists():
            yield PartProfile.model_validate_json(file.read_bytes())
