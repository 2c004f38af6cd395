"""Whole channels or layers."""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from effbench.plugin import Context

from .masking import Pruning

if TYPE_CHECKING:
    from torch import nn


class StructuredPruning(Pruning):
    """Remove whole feed-forward channels, or whole layers, so that the model is smaller (Ma et al. 2023, arXiv 2305.11627).

    A channel goes where |Σ weight × gradient| over its weights and calibration batches is smallest, the same number in every
    layer; a layer goes where it changes its input least (cosine; Men et al. 2024, arXiv 2403.03853), never the first. What is
    left is an ordinary dense model: fewer bytes, fewer products, faster on any machine. Quality falls faster than with masks of
    the same share, and wants training afterwards. It does not help where the rest is so small that overheads rule. List
    heads with `head_pruning`. Needs float weights and a plain model: list it before what converts or wraps it.
    """

    name: ClassVar = "structured_pruning"
    imports: ClassVar = (f"{__package__}.structure", f"{__package__}.scores")

    what: Literal["channels", "layers"] = Field(default="channels", description="feed-forward channels, or transformer layers")
    share: float = Field(default=0.25, gt=0, lt=1, description="of the channels, or layers, that are removed, rounded down")
    multiple_of: int = Field(
        default=8, ge=1, description="channels: what is left is rounded up to a multiple, as kernels like it"
    )
    batches: int = Field(default=8, ge=1, description="calibration batches, at the cell's batch size and sequence length")

    def prune(self, model: "nn.Module", ctx: Context) -> "nn.Module":
        """Smaller layers, or fewer, in place."""
        from . import structure

        batches = ctx.calibration(self.batches)
        if self.what == "layers":
            return structure.without_layers(model, self.share, batches)
        return structure.narrower(model, self.share, self.multiple_of, batches)
