"""Meters turn what a trial did into named values. Metrics carry their unit, direction and definition with them."""

from abc import ABC
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, field_serializer

from effbench.plugin.cell import Cell, Phase

if TYPE_CHECKING:
    from torch import Tensor, nn

    from effbench.plugin.technique import Batch, Inference, TrainStep


@dataclass(frozen=True)
class Metric:
    """A named value."""

    name: str
    """`phase.what_unit`, for instance `train.step_s`."""
    unit: str
    direction: Literal["lower", "higher"]
    definition: str
    """One line."""
    across_ranks: Literal["first", "max", "sum"] = "first"
    """How the values of several ranks become the one in the record; timings are already those of the slowest rank."""


class Summary(BaseModel):
    """One metric of one trial: the median of its samples with its 95 % interval, or one exact value (n = 1)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    median: float
    low: float | None = None
    high: float | None = None
    n: int = 1
    unit: str
    stopped: str | None = None
    """Why sampling stopped: interval, steps, cap."""
    warmup: int | None = None
    """How many leading samples were given up; the sidecar has them all, in order."""
    outliers: int | None = None
    """How many of the `n` samples lie beyond Tukey's far fences; they are kept."""

    @field_serializer("median", "low", "high", when_used="json-unless-none")
    def _as_written(self, value: float) -> int | float:
        """Counts exactly; of everything else nine digits, which is more than any clock knows, so that records stay small."""
        return int(value) if value.is_integer() else float(f"{value:.9g}")


@dataclass
class Observation:
    """What the harness saw in one phase, given to every meter after it; times are seconds, free of set-up and evaluation."""

    cell: Cell
    phase: Phase
    model: "nn.Module | None" = None
    samples: dict[str, list[float]] = field(default_factory=dict)
    """Raw durations by what was timed: `step`, `prefill`, `decode` (one whole decode loop each)."""
    losses: list[float] = field(default_factory=list)
    """Phase train: the loss of each step, the mean over ranks."""
    stopped: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    """Exact figures such as bytes on disk, by name."""
    rank: int = 0
    step: "TrainStep | None" = None
    """Phase train: the step as every technique left it, with its optimizer."""
    batch: "Batch | None" = None
    """Phase train: this rank's share of one batch."""
    inference: "Inference | None" = None
    """Phase infer: the object that is timed, and whose quality is measured."""
    prompt: "Tensor | None" = None
    """Phase infer: this rank's share of the prompts, token ids (b, seq_len)."""
    base_model: "Callable[[], nn.Module] | None" = None
    """Phase infer: a fresh, untouched copy of the model; loading it takes time and memory, so only `probe` may."""
    decodes: bool = True
    """Phase infer: whether the stack can generate tokens one by one."""
    cache: Any = None
    """Phase infer, at its end: what the last prefill and decode loop left as their cache."""

    @property
    def decode_steps(self) -> int:
        """Steps that follow a prefill here."""
        return self.cell.decode_steps if self.decodes else 0


class Meter(ABC):
    """Measures one thing. One instance lives through a trial: `begin` and `end` surround each phase, `probe` comes after."""

    name: ClassVar[str]
    metrics: ClassVar[tuple[Metric, ...]]

    def begin(self, observation: Observation) -> None:  # noqa: B027 - most meters only look at what the harness saw
        """Called right before a phase."""

    def end(self, observation: Observation) -> Mapping[str, Summary]:
        """Called right after a phase: what could be measured. What could not is left out, never 0."""
        return {}

    def probe(self, observation: Observation) -> Mapping[str, Summary]:
        """Called when every meter has ended the phase: run the step or the inference again, for what needs an instrument.

        Nothing is timed or watched any more, and every rank calls the same meters in the same order. It leaves the model, its
        gradients and the random state as it found them: quality is measured on that model afterwards.
        """
        return {}
