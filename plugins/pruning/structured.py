"""Whole channels, heads or layers."""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from effbench.plugin import Cell, Context

from ..attention.card import no_form_for
from .masking import Pruning

if TYPE_CHECKING:
    from torch import nn


class StructuredPruning(Pruning):
    """Remove whole feed-forward channels, attention heads or layers: the model gets smaller (Ma et al. 2023, arXiv 2305.11627).

    A channel goes where |Σ weight × gradient| over its weights and calibration batches is smallest, a head where the loss
    depends least on a gate on it, the same number in every layer (`head_pruning` ranks heads over all layers); a layer goes
    where it changes its input least (cosine; Men et al. 2024, arXiv 2403.03853), never the first. What is left is an ordinary
    dense model: fewer bytes, fewer products, faster on any machine. Quality falls faster than with masks of the same share
    and wants training afterwards. It does not help where the rest is so small that overheads rule. Needs float weights and a
    plain model: list it before what converts or wraps it.
    """

    name: ClassVar = "structured_pruning"
    sets: ClassVar = ("layer sizes",)
    imports: ClassVar = (f"{__package__}.structure", f"{__package__}.scores")

    what: Literal["channels", "heads", "layers"] = Field(
        default="channels", description="feed-forward channels, attention heads (key heads with their queries), or layers"
    )
    share: float = Field(default=0.25, gt=0, lt=1, description="of them that is removed, rounded down")
    multiple_of: int = Field(
        default=8, ge=1, description="channels: what is left is rounded up to a multiple, as kernels like it"
    )
    batches: int = Field(default=8, ge=1, description="calibration batches, at the cell's batch size and sequence length")

    def unsupported(self, cell: Cell) -> str | None:
        """Heads are found in models of one stack."""
        return no_form_for(cell.facts.model_type) if self.what == "heads" else None

    def prune(self, model: "nn.Module", ctx: Context) -> "nn.Module":
        """Smaller layers, or fewer, in place."""
        from . import structure

        batches = ctx.calibration(self.batches)
        if self.what == "layers":
            return structure.without_layers(model, self.share, batches)
        if self.what == "heads":
            return structure.with_fewer_heads(model, self.share, batches)
        return structure.narrower(model, self.share, self.multiple_of, batches)
