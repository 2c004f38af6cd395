"""Tensor parallelism: each rank computes with its part of every matrix."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from effbench.plugin import Cell, Context, LoadRequest, Technique

from .plans import SEQUENCE_PARALLEL, plan_of

if TYPE_CHECKING:
    from torch import nn

class TensorParallel(Technique):
    """Split the matrices of every layer over ranks, by columns and then by rows (Shoeybi et al. 2019, arXiv 1909.08053).
    """

    name: ClassVar = "tensor_parallel"
    family: ClassVar = "parallelism"
    dimension: ClassVar = "tp"
    imports: ClassVar = (f"{__package__}.splitting",)

    ranks: int | None = Field(default=None, ge=1, description="ranks that share each layer; what the rest of the stack leaves")
    sequence_parallel: bool = Field(default=False, description="x")

    def degree(self) -> int | None:
        return self.ranks

    def load(self, request: LoadRequest) -> LoadRequest:
        """The whole model never lies on one device."""
        return replace(request, host=True)

    def apply(self, model: "nn.Module", ctx: Context) -> "nn.Module":
        """Give this rank its part of the model."""
        plan = plan_of(ctx.cell.facts.model_type)
        if ctx.mesh is not None and plan:
            from .splitting import split_model

            split_model(model, ctx.mesh["tp"], plan, sequence=self.sequence_parallel)
        return model.to(ctx.device)
