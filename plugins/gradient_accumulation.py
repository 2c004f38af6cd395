"""Gradient accumulation: a step's batch in parts."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from effbench.plan.memory import untouched_bytes
from effbench.plugin import Cell, Context, Technique, TrainStep, hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn

    from effbench.plugin.technique import Batch

_UNLEARNT = -100  # the label of a token that is given, not predicted


class GradientAccumulation(Technique):
    """Take a step's batch in parts and add up their gradients (as Ott et al. 2018 do across batches, arXiv 1806.00187).

    Activations and logits are those of one part at a time, so a batch fits that would not. Each part counts by the tokens that
    are predicted in it, so that the gradient is the whole batch's, padded or not. Data-parallel ranks exchange gradients once,
    behind the last part. Costs a little time at best: as much is computed, in smaller products. It does not help where weights
    and optimizer state fill the memory, nor in speed where the batch fits: a part of few tokens leaves the device idle.
    """

    name: ClassVar = "gradient_accumulation"
    family: ClassVar = "other"

    microbatches: int = Field(default=2, ge=1, description="parts in which each rank takes its sequences of a step")

    def unsupported(self, cell: Cell) -> str | None:
        """Parts are whole sequences, as many in each."""
        sequences = cell.batch_size // cell.data_ranks
        if sequences % self.microbatches:
            return f"a rank's batch of {sequences} sequences cannot be taken in {self.microbatches} equal parts"
        return None

    def memory(self, cell: Cell, phase: Literal["train", "infer"]) -> float:
        """The same weights, gradients and optimizer state with a part of the activations and logits."""
        if phase == "infer":
            return 0.0
        part = cell.model_copy(update={"batch_size": cell.batch_size // self.microbatches})
        return untouched_bytes(part, phase) - untouched_bytes(cell, phase)

    def train(self, step: TrainStep, ctx: Context) -> TrainStep:
        """Go through the parts with the forward and backward passes that were there."""
        import torch

        inner, causal = step.forward_backward, ctx.cell.facts.causal

        def forward_backward(current: TrainStep, batch: "Batch") -> "Tensor":
            parts = [
                dict(zip(batch, tensors, strict=True))
                for tensors in zip(*(tensor.chunk(self.microbatches) for tensor in batch.values()), strict=True)
            ]
            counts = torch.stack([_predicted(part, causal=causal) for part in parts])
            losses = []
            for number, (part, share) in enumerate(zip(parts, counts / counts.sum(), strict=True), start=1):
                with _exchange(current.model, wanted=number == len(parts)):
                    losses.append(inner(replace(current, loss=_weighted(current, share)), part))
            return torch.stack(losses).sum(0)  # which leaves the empty loss of a rank that has none empty

        return replace(step, forward_backward=forward_backward)


def _predicted(batch: "Batch", *, causal: bool) -> "Tensor":
    """How many tokens the loss is the mean over; a causal model's first one is never predicted."""
    labels = batch["labels"]
    return ((labels[:, 1:] if causal else labels) != _UNLEARNT).sum()


def _weighted(step: TrainStep, share: "Tensor") -> "Callable[[nn.Module, Batch], Tensor]":
    def loss(model: "nn.Module", batch: "Batch") -> "Tensor":
        import torch

        value = step.loss(model, batch)
        return torch.where(share > 0, value * share, 0.0)  # a part in which nothing is predicted has a mean over nothing

    return loss


@contextmanager
def _exchange(model: Any, *, wanted: bool) -> Iterator[None]:
    """Whether ranks exchange gradients in this backward pass, as PyTorch's FSDP2 and DDP are told; others are not asked."""
    if hasattr(model, "set_requires_gradient_sync"):
        model.set_requires_gradient_sync(wanted)
        yield
    elif hasattr(model, "no_sync") and not wanted:
        with model.no_sync():
            yield
    else:
        yield


@hookimpl
def register_techniques(register: "Callable[[type[Technique]], None]") -> None:
    """Register gradient accumulation."""
    register(GradientAccumulation)
