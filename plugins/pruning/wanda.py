"""The smallest products of weight and input."""

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from effbench.plugin import Context

from .masking import Scope, Sparse

if TYPE_CHECKING:
    from torch import Tensor, nn


class Wanda(Sparse):
    """Zero the weights with the smallest |weight| × norm of its input, by calibration (Sun et al. 2023, arXiv 2306.11695).

    A small weight on an input that is always large matters more than its size says. Weights compete within each output, which
    the paper finds to be as important as the score. Costs a few forward passes, no gradients. All layers are scored in one pass
    of the dense model; the paper's code goes layer by layer, through the layers that it has pruned already. Like all masks it
    saves neither time nor memory of dense products. It does not help where training afterwards is long
    enough to recover anyway.
    """

    name: ClassVar = "wanda"
    imports: ClassVar = (*Sparse.imports, f"{__package__}.scores")

    scope: Scope = Field(default="output", description="what weights compete within")
    batches: int = Field(default=8, ge=1, description="calibration batches, at the cell's batch size and sequence length")

    def masks(self, model: "nn.Module", layers: "dict[str, nn.Module]", ctx: Context) -> "dict[str, Tensor]":
        """By size and input norm."""
        from .masks import masks_of
        from .scores import size_by_input

        return masks_of(size_by_input(model, layers, ctx.calibration(self.batches)), self.sparsity, self.scope)
