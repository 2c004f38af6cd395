"""Head pruning."""

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from effbench.plugin import Cell, Context, Technique

from .card import no_form_for

if TYPE_CHECKING:
    from torch import nn


class HeadPruning(Technique):
    """Remove the attention heads that the loss depends on least (Michel et al. 2019, arXiv 1905.10650).

    A head's score is the mean size of the loss's derivative by a gate on it, on a few training batches, relative to its layer;
    the lowest of all layers go, but never a layer's last. They are really removed: smaller projections, less attention, and on
    decoders a smaller KV cache. Where query heads share a key head, they go or stay together. Acts before training, which wins
    back some of what was lost. Scoring takes forward and backward passes in `apply`. It does not help where the feed-forward
    layers take most of the time, as they do in short sequences, or where models have few heads to spare. List it before
    techniques that wrap or convert linear layers.
    """

    name: ClassVar = "head_pruning"
    family: ClassVar = "pruning"
    sets: ClassVar = ("attention heads",)
    imports: ClassVar = (f"{__package__}.importance",)

    share: float = Field(default=0.25, ge=0, lt=1, description="of all heads (key heads, where query heads share them)")
    batches: int = Field(default=4, ge=1, description="training batches that heads are scored on")

    def unsupported(self, cell: Cell) -> str | None:
        """Models of one stack."""
        return no_form_for(cell.facts.model_type)

    def apply(self, model: "nn.Module", ctx: Context) -> "nn.Module":
        """Score, and remove."""
        from .importance import agreed, head_importance, prune_heads
        from .projections import projections_of

        layers = projections_of(model, self.name)
        importance = head_importance(model, layers, ctx.calibration(self.batches))
        prune_heads(layers, agreed(importance, ctx.world_size), self.share)
        return model
