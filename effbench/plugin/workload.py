"""What a model is made to do: training batches, prompts, and a measure of quality. Named `name` or `name:argument`."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from effbench.plugin.cell import Cell
from effbench.plugin.model import Tokenizer

if TYPE_CHECKING:
    from torch import Tensor

    from effbench.plugin.technique import Batch


HeldOut = Literal["validation", "test"]
"""Settings are chosen on the one, and boards show the other."""


@dataclass(frozen=True)
class Quality:
    """Scores of one evaluation. `per_sample` keeps every document's own, in a fixed order, for paired tests.

    A score whose name ends in `accuracy` is better when it is higher, any other when it is lower.
    """

    scores: dict[str, float]
    per_sample: dict[str, list[float]]
    weights: list[float]
    """How much each sample counts in the mean (for bits per byte: its bytes)."""
    names: list[str]
    chance: dict[str, list[float]] = field(default_factory=dict)
    """What the best constant prediction scores on each sample, the constant being chosen on the training split.

    By score, of those it is known for: boards mark a row that is not clearly better `at chance`, and do not rank it.
    """


def higher_is_better(score: str) -> bool:
    """Accuracies grow with quality; bits, losses and perplexities fall."""
    return score.endswith("accuracy")


def weighted_mean(values: Sequence[float], weights: Sequence[float]) -> float:
    """How per-sample scores become one."""
    return sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)


class Workload(ABC):
    """One thing to do with a model. Evaluation samples are fixed; training data is shuffled by the trial's seed."""

    name: ClassVar[str]
    phases: ClassVar[tuple[str, ...]] = ("train", "infer")

    def __init__(self, argument: str | None = None) -> None:
        self.argument = argument

    @property
    def label(self) -> str:
        """What records call this workload. One whose argument is a path leaves the folders out."""
        return self.name if self.argument is None else f"{self.name}:{self.argument}"

    def unsupported(self, cell: Cell) -> str | None:
        """Why there is no such cell with this workload, or None. Called when planning, without torch."""
        return None

    @abstractmethod
    def data_hash(self) -> str:
        """A hash of all text the workload uses, without torch. ValueError with one clear line if there is none."""

    @abstractmethod
    def training_batches(self, tokenizer: Tokenizer, cell: Cell, count: int, seed: int) -> "list[Batch]":
        """`count` batches of the train split at the cell's batch_size × seq_len, on the CPU."""

    @abstractmethod
    def prompts(self, tokenizer: Tokenizer, cell: Cell) -> "Tensor":
        """Token ids (batch_size, seq_len) of held-out text to prefill, without padding."""

    @abstractmethod
    def quality(
        self, logits: "Callable[[Tensor, Tensor], Tensor]", tokenizer: Tokenizer, cell: Cell, split: HeldOut = "test"
    ) -> Quality:
        """Evaluate on a split that is not trained on. `logits(ids, mask)` maps (B, n) to (B, n, V)."""
