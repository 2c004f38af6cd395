"""A KV cache of few bits."""

from typing import ClassVar, Literal

from pydantic import Field

from effbench.plugin import Cell, Context, Inference, Technique


class KVQuant(Technique):
    """Keys and values are cached in 8 or 4 bits, scaled by token and channel group (KIVI: Liu et al. 2024, arXiv 2402.02750).

    Each token is rounded once, when it comes, and read as floats by every later step. Attention always sees what the cache
    holds, in evaluation as well, so that quality is that of what is timed. KIVI's scales for keys run along the tokens and its
    newest tokens stay float; both matter at 2 bits, which are not offered. Transformers' own quantized caches need quanto or
    hqq and round the whole cache again and again. It helps where the cache is large beside the weights (long contexts, large
    batches), and in bytes: it gets slower, for there is no kernel that reads integers.
    """

    name: ClassVar = "kv_quant"
    family: ClassVar = "quantization"
    sets: ClassVar = ("kv cache",)
    imports: ClassVar = (f"{__package__}.cache",)

    bits: Literal[8, 4] = Field(default=8, description="of each key and value")
    group_size: int = Field(
        default=32, ge=2, description="channels that share a scale; a whole head's where it does not divide them"
    )

    def unsupported(self, cell: Cell) -> str | None:
        """Only models that decode have a cache."""
        return None if cell.facts.causal else f"{cell.facts.model_type} has no KV cache to quantize"

    def infer(self, inference: Inference, ctx: Context) -> Inference:
        """Give the decoder such a cache in every call that brings none."""
        from .cache import provide_cache

        provide_cache(inference.model, self.bits, self.group_size)
        return inference
