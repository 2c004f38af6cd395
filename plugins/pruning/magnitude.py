"""The smallest weights."""

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from effbench.plugin import Context

from .masking import Scope, Sparse

if TYPE_CHECKING:
    from torch import Tensor, nn


class MagnitudePruning(Sparse):
    """Set the smallest weights of linear layers to zero (Han et al. 2015, arXiv 1506.02626).

    Before training (`at = "apply"`) the rest is trained on and recovers; after it (`at = "infer"`) nothing recovers. Embeddings
    and the head stay whole. Zeros in a dense matrix save neither time nor memory, only bytes of a file that leaves them out.
    LoRA behind it leaves the zeros of the frozen weights alone, but merging fills them again: keep them with LoRA's
    `merged = false`, or list this once more behind it with `at = "infer"`.
    """

    name: ClassVar = "magnitude_pruning"

    scope: Scope = Field(default="global", description="what weights compete within")

    def masks(self, model: "nn.Module", layers: "dict[str, nn.Module]", ctx: Context) -> "dict[str, Tensor]":
        """By absolute value."""
        from .masks import masks_of, rows

        return masks_of({name: rows(layer).abs() for name, layer in layers.items()}, self.sparsity, self.scope)
