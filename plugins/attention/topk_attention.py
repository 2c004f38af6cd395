"""Attention to the most relevant blocks."""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from effbench.plugin import Cell, Context

from .card import AttentionForm

if TYPE_CHECKING:
    from .form import Form


class TopKAttention(AttentionForm):
    """Each block of queries picks the key blocks whose mean fits its own best (Jiang et al. 2024, arXiv 2407.02490).

    Time and memory grow with n · blocks · block, and with a small n² / block² for the choice, which follows the content as no
    fixed pattern can. The own block is always among the chosen; no gradient passes the choice; query heads that share a key
    head choose together. Decoding reads few keys but keeps all. Choosing by a block's mean query, as published for prompts that
    are known whole, lets later tokens move what earlier ones see: on a causal model that leaks the future, so there the block's
    first query chooses by default. It does not help where attention is spread over many blocks, or where sequences have hardly
    more blocks than are chosen.
    """

    name: ClassVar = "topk_attention"
    sets: ClassVar = ("attention", "kv cache")

    block: int = Field(default=64, ge=1, description="tokens in a block")
    blocks: int = Field(default=8, ge=1, description="key blocks for each block of queries, its own among them")
    form: Literal["causal", "published"] | None = Field(
        default=None,
        description="what chooses: the block's first query (causal) or its mean query (published); as the model is by default",
    )

    def leaks(self, cell: Cell) -> str | None:
        """By its choices, if a causal model's blocks choose by their mean."""
        if cell.facts.causal and self.form == "published":
            return "the mean query of a block chooses the keys of its earlier tokens as well"
        return None

    def build(self, ctx: Context) -> "Form":
        """Blocks that are routed."""
        from .routed_blocks import RoutedBlocks

        by_first_query = (self.form or ("causal" if ctx.cell.facts.causal else "published")) == "causal"
        return RoutedBlocks(self.block, self.blocks, by_first_query)
