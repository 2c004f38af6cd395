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
    imports: ClassVar = (f"{__package__}.sharding",)

    precision: Literal["float32", "bfloat16"] = Field(
        default="float32", description="number type that weights are gathered and used in; gradients are summed in float32"
    )
    reshard: bool = Field(default=True, description="let a layer's gathered weights go after its forward pass")
    offload: bool = Field(
        default=False, description="keep each rank's part in the host's memory, and let the optimizer run there (CUDA)"
    )

    def load(self, request: LoadRequest) -> LoadRequest:
        """Weights wait in the host's memory until `apply`, so that no device holds all of them."""
        return replace(request, host=True)

    def apply(self, model: "nn.Module", ctx: Context) -> "nn.Module":
        """Keep this rank's part of every weight."""
        if ctx.mesh is None:
            return model.to(ctx.device)  # a single rank
        from .sharding import shard

        return shard(model, ctx.mesh["dp"], precision=self.precision, reshard=self.reshard, offload=self.offload)
