"""Grouped-query attention."""

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from effbench.plugin import Cell, Context, Technique

from .card import no_form_for

if TYPE_CHECKING:
    from torch import nn


class GroupedQuery(Technique):
    """Fewer key and value heads, each a mean of old ones (GQA: Ainslie et al. 2023, arXiv 2305.13245).

    The KV cache and what a decode step reads of it shrink by the number of heads that become one; with one group it is
    multi-query attention (Shazeer 2019, arXiv 1911.02150). Acts before training, which has to win back what pooling lost: the
    paper trains for 5 % of the original steps, and without any the model is broken. It does not help where the cache is small
    beside the weights (short contexts, small batches), and hardly a model that does not decode. List it before techniques that
    wrap or convert linear layers.
    """

    name: ClassVar = "grouped_query"
    family: ClassVar = "attention"
    sets: ClassVar = ("attention heads",)
    imports: ClassVar = (f"{__package__}.projections",)

    groups: int = Field(default=1, ge=1, description="key heads, and value heads, that each layer is left with")

    def unsupported(self, cell: Cell) -> str | None:
        """Groups are of equal size, and more than one head each."""
        if reason := no_form_for(cell.facts.model_type):
            return reason
        heads = cell.facts.kv_heads
        if heads <= self.groups or heads % self.groups:
            return f"{heads} key heads cannot be pooled to {self.groups}: give a smaller number that divides them"
        return None

    def apply(self, model: "nn.Module", ctx: Context) -> "nn.Module":
        """Pool, and tell the config."""
        from .interface import transformers_model
        from .projections import projections_of

        for layer in projections_of(model, self.name):
            layer.pool(self.groups)
        config = transformers_model(model).config
        if hasattr(config, "num_key_value_heads"):
            config.num_key_value_heads = self.groups
        return model
