"""Fully sharded data parallelism, on PyTorch's fully_shard (FSDP2)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from effbench.plugin import Cell, Context, Inference, LoadRequest, Technique

if TYPE_CHECKING:
    from torch import nn


class FSDP(Technique):
    """Weights, gradients and optimizer state in parts, gathered layer by layer (Zhao et al. 2023, arXiv 2304.11277).

    Each of N ranks keeps 1 / N of every weight, its gradient and its state; a layer's weights are whole only while it computes,
    forward and again backward. That is half as much again to communicate as `ddp` has, or as much with `reshard = false`, which
    keeps all weights whole between the two passes. It saves most where weights outweigh activations, and makes models fit
    that otherwise do not. It does not help small models, slow links, nor decoding: every token gathers all the weights.
    List it behind what changes the model's layers.
    """

    name: ClassVar = "fsdp"
    family: ClassVar = "parallelism"
    dimension: ClassVar = "dp"
    shards: ClassVar = True
    imports: ClassVar = (f"{__package__}.sharding",)

    precision: Literal["float32", "bfloat16"] = Field(
        default="float32", description="number type that weights are gathered and used in; gradients are summed in float32"
    )
    reshard: bool = Field(default=True, description="let a layer's gathered weights go after its forward pass")
    offload: bool = Field(
        default=False, description="keep each rank's part in the host's memory, and let the optimizer run there (CUDA)"
    )

    def unsupported(self, cell: Cell) -> str | None:
        """Offloading is from a device to its host."""
        if self.offload and cell.device != "cuda":
            return "offload moves parts to the host's memory, where a CPU has them already: leave it out"
        return None

    def unsupported_after(self, earlier: Sequence[Technique]) -> str | None:
        """Some techniques read and write whole weights while others train or infer."""
        return self._needs_whole(earlier)

    def unsupported_before(self, later: Sequence[Technique]) -> str | None:
        """As behind it, and nothing may come to a model that is in parts, or change it."""
        if reason := self._needs_whole(later):
            return reason
        changes = next((technique for technique in later if type(technique).apply is not Technique.apply), None)
        return (
            f"{self.name} divides the model before {changes.name} changes it: list it behind {changes.name}"
            if changes
            else None
        )

    def _needs_whole(self, others: Sequence[Technique]) -> str | None:
        for technique in others:
            if "linear weights" in technique.sets:
                return f"{technique.name} converts whole weights, of which {self.name} leaves parts: use ddp or zero1"
            zeroes = type(technique).train is not Technique.train or getattr(technique, "at", "apply") == "infer"
            if technique.family == "pruning" and zeroes:
                return f"{technique.name} puts zeros into whole weights, of which {self.name} leaves parts: use ddp or zero1"
        return None

    def memory(self, cell: Cell, phase: Literal["train", "infer"]) -> float | None:
        """Parts of the weights, in training with their gradients and two moments; and one layer, or all of them, whole.

        Not known where activations are in 16 bits as well, nor of offloading, which needs room on the host as much.
        """
        if self.precision != "float32" or self.offload:
            return None
        weights = cell.weight_bytes
        copies = 4 if phase == "train" else 1
        whole = weights if phase == "train" and not self.reshard else weights / max(1, cell.facts.layers + 1)
        return (whole - copies * weights) * (1 - 1 / cell.data_ranks)

    def load(self, request: LoadRequest) -> LoadRequest:
        """Weights wait in the host's memory until `apply`, so that no device holds all of them."""
        return replace(request, host=True)

    def apply(self, model: "nn.Module", ctx: Context) -> "nn.Module":
        """Keep this rank's part of every weight."""
        if ctx.mesh is None:
            return model.to(ctx.device)  # a single rank
        from .sharding import shard

        return shard(model, ctx.mesh["dp"], precision=self.precision, reshard=self.reshard, offload=self.offload)

    def infer(self, inference: Inference, ctx: Context) -> Inference:
        """Gather a layer when it is used and let it go at once, whatever training did."""
        if ctx.mesh is not None:
            from .sharding import settle

            settle(inference.model)
        return inference
