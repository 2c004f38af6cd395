"""The attention call alone, as a model: what attention itself costs, with nothing around it. Importing it needs no torch."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from effbench.plugin import InputError, LoadRequest, ModelFacts, ModelSource, hookimpl
from effbench.plugin.model import Tokenizer
from effbench.plugin.transformers_source import ByteTokenizer

if TYPE_CHECKING:
    from torch import nn

_DEFAULT_SIZE = "4x64"


class CausalAttention(ModelSource):
    """`causal-attention:HEADSxSIZE` (4x64): one causal attention call on random queries, keys and values, and nothing else.

    No projections, rotary positions, feed-forward layer, embedding or head: time and memory are those of attention. A training
    step computes the gradients of queries, keys and values; the one weight is a factor of the loss. Tokens count, and what
    they are does not matter, so there is no quality.
    """

    name: ClassVar = "causal-attention"
    trained: ClassVar = False
    model_type: ClassVar = "llama"
    causal: ClassVar = True

    def facts(self) -> ModelFacts:
        """Of the argument; the context is as good as endless, for nothing depends on positions."""
        heads, size = self.sizes("HEADS", "SIZE", default=_DEFAULT_SIZE)
        return ModelFacts(
            model_type=self.model_type,
            causal=self.causal,
            layers=1,
            hidden=heads * size,
            heads=heads,
            kv_heads=heads,
            intermediate=0,
            vocab=256,
            context=2**20,
        )

    def weights_hash(self) -> str:
        """Hash of the shape and of the code that draws the inputs."""
        made_by = (Path(__file__).parent / "modeling.py").read_bytes()
        return hashlib.sha256(self.facts().model_dump_json().encode() + made_by).hexdigest()[:16]

    def load(self, request: LoadRequest, seed: int) -> "nn.Module":
        """The same for every seed: what it attends to is drawn from a seed of its own."""
        from . import modeling

        if request.quantization_config is not None:
            raise InputError(f"model {self.label}: it has no weights that could be quantized")
        return modeling.build(self.facts(), request)

    def tokenizer(self) -> Tokenizer:
        """Bytes."""
        return ByteTokenizer()


class TwoSidedAttention(CausalAttention):
    """`two-sided-attention:HEADSxSIZE` (4x64): as causal-attention, but every token sees all, and nothing decodes."""

    name: ClassVar = "two-sided-attention"
    model_type: ClassVar = "eurobert"
    causal: ClassVar = False


@hookimpl
def register_models(register: "Callable[[type[ModelSource]], None]") -> None:
    """Register both."""
    for source in (CausalAttention, TwoSidedAttention):
        register(source)
