"""Linformer: keys and values of fixed number."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from effbench.plugin import Cell, Context, Technique

from .card import AttentionForm

if TYPE_CHECKING:
    from torch import nn

    from .form import Form


class Linformer(AttentionForm):
    """Keys and values are projected along the length to `k` slots by learned matrices (Wang et al. 2020, arXiv 2006.04768).

    Time and memory grow with n · k and not with n². Each layer gets k · n new parameters, twice that unless keys and values
    share, for the cell's seq_len as the greatest length: longer inputs are refused, shorter ones use a part of the matrix. A
    slot mixes tokens of all positions, so it is for models that look both ways, and refused on causal ones. Slots start as
    means of equal shares of the tokens (with k = n, exact attention) and not as published at random, for a model trained with
    exact attention should start near to what it was; it still has to be trained on. Padding counts as zeros. It does not help
    where sequences are hardly longer than k.
    """

    name: ClassVar = "linformer"

    k: int = Field(default=256, ge=1, description="slots per layer; at most as many as tokens, where nothing is saved")
    share: Literal["none", "kv"] = Field(
        default="none", description="a layer's heads share its projection; kv: its keys and values as well"
    )

    def unsupported(self, cell: Cell) -> str | None:
        """A slot that holds a later token shows it to every query."""
        if cell.facts.causal:
            return (
                f"linformer mixes all positions into every slot: {cell.facts.model_type}, which is causal, would see the future"
            )
        return super().unsupported(cell)

    def unsupported_after(self, earlier: Sequence[Technique]) -> str | None:
        """The projections end where the cell's sequence does."""
        return self._too_long(earlier) or super().unsupported_after(earlier)

    def unsupported_before(self, later: Sequence[Technique]) -> str | None:
        """In either order."""
        return self._too_long(later) or super().unsupported_before(later)

    def _too_long(self, others: Sequence[Technique]) -> str | None:
        longer = next((technique for technique in others if "virtual tokens" in technique.sets), None)
        return f"linformer projects seq_len tokens, and {longer.name} adds to them" if longer else None

    def build(self, ctx: Context) -> "Form":
        """The same for all layers, whose projections are their own."""
        from .length_projection import Slots

        return Slots()

    def apply(self, model: "nn.Module", ctx: Context) -> "nn.Module":
        """Put the form in, and give each layer its projections."""
        from .length_projection import give_projections

        model = super().apply(model, ctx)
        length = ctx.cell.seq_len
        give_projections(model, length, min(self.k, length), shared=self.share == "kv")
        return model
