"""BigBird."""

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from effbench.plugin import Context

from .card import AttentionForm

if TYPE_CHECKING:
    from .form import Form


class BigBird(AttentionForm):
    """Each block of queries sees a window, the outermost blocks, and random ones (Zaheer et al. 2020, arXiv 2007.14062).

    Time and memory grow with n · (blocks seen) · block; random links let any two tokens meet within few layers. As published it
    is two-sided: the global blocks are the first and the last, and see everything. On causal models, which the paper does not
    treat, they are the first, the window is the own block with those before it, and random blocks come from the past. The
    pattern is drawn from the trial's seed, for each layer and key head. Decoding reads few keys but keeps all. It does not help
    where sequences have hardly more blocks than a row sees (8 by default, 512 tokens).
    """

    name: ClassVar = "bigbird"
    sets: ClassVar = ("attention", "kv cache")

    block: int = Field(default=64, ge=1, description="tokens in a block")
    window_blocks: int = Field(default=3, ge=1, description="blocks of the window with the own one; two-sided, an odd number")
    global_blocks: int = Field(default=1, ge=0, description="global blocks at the start, and in two-sided models at the end")
    random_blocks: int = Field(default=3, ge=0, description="random blocks for each block of queries")

    def build(self, ctx: Context) -> "Form":
        """Its pattern comes from the trial's seed."""
        from .random_blocks import RandomBlocks

        return RandomBlocks(self.block, self.window_blocks, self.global_blocks, self.random_blocks, ctx.seed)
