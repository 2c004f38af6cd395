"""The floor: an answer that does not depend on the question."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from effbench.plugin import Cell, Context, Inference, Technique, hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn


class Constant(Technique):
    """Predict how often each answer occurs in training, whatever the input: what any model has to beat.

    The majority class beside which Long Range Arena's scores are to be read (Tay et al. 2020, arXiv 2011.04006); of running
    text, the frequencies of its tokens. It replaces the whole model, so it must be alone in its stack: time and memory are
    nearly nothing, and its accuracy is the share of the most frequent answer. It is there to be compared with; where another
    stack is not clearly better than it, that stack has learnt nothing that its score could show.
    """

    name: ClassVar = "constant"
    family: ClassVar = "other"

    batches: int = Field(default=64, ge=1, description="training batches in which answers are counted")

    def unsupported_after(self, earlier: "Sequence[Technique]") -> str | None:
        """Nothing that changes the model would be left."""
        return "constant replaces the model: nothing may stand before it" if earlier else None

    def unsupported_before(self, later: "Sequence[Technique]") -> str | None:
        """There is no model left to change."""
        return "constant replaces the model: nothing may stand behind it" if later else None

    def unsupported_phase(self, cell: Cell, phase: Literal["train", "infer"]) -> str | None:
        """It is counted, not trained."""
        return "constant predicts frequencies, which are counted" if phase == "train" else None

    def apply(self, model: "nn.Module", ctx: Context) -> "nn.Module":
        """A module of one buffer, the log frequencies, takes the model's place."""
        import torch

        labels = torch.cat([batch["labels"].flatten() for batch in ctx.calibration(self.batches)])
        counts = torch.bincount(labels[labels >= 0], minlength=ctx.cell.facts.vocab) + 1.0  # each once more: no log of 0
        frequencies = torch.nn.Module()
        frequencies.register_buffer("logits", (counts / counts.sum()).log().to(ctx.device))
        return frequencies

    def infer(self, inference: Inference, ctx: Context) -> Inference:
        """The same logits everywhere."""
        return replace(inference, logits=_everywhere, prefill=_at_the_end, decode=_at_the_end)


def _everywhere(current: Inference, ids: "Tensor", mask: "Tensor") -> "Tensor":
    logits: Tensor = current.model.get_buffer("logits").expand(*ids.shape, -1)
    return logits


def _at_the_end(current: Inference, ids: "Tensor", _: Any) -> "tuple[Tensor, Any]":
    logits: Tensor = current.model.get_buffer("logits").expand(len(ids), -1)
    return logits, None


@hookimpl
def register_techniques(register: "Callable[[type[Technique]], None]") -> None:
    """Register the constant prediction."""
    register(Constant)
