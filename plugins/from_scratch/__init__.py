"""Small models whose weights are drawn in each trial, to be taught all they know by its training."""

import hashlib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from effbench.plugin import InputError, LoadRequest, ModelFacts, ModelSource, hookimpl
from effbench.plugin.model import Tokenizer
from effbench.plugin.transformers_source import ByteTokenizer, seeded

if TYPE_CHECKING:
    from torch import nn

_SHAPE = {"layers": 2, "hidden": 64, "heads": 2, "kv_heads": 2, "intermediate": 128, "vocab": 256, "context": 16_384}


class TinyDecoder(ModelSource):
    """A causal byte-level Llama of 2 layers and 64 channels with a token shift: each token also knows the one before it.

    Without the shift (an embedding of the previous token, added) a model this small needs far longer than a benchmark has until
    its first layer looks one token back, and then learns no recall at all. `tiny-decoder:LAYERSxHIDDENxHEADS` is one of another
    size, its feed-forward layer twice as wide as the rest.
    """

    name: ClassVar = "tiny-decoder"
    from_scratch: ClassVar = True
    trained: ClassVar = False
    shape: ClassVar = ModelFacts(model_type="llama", causal=True, **_SHAPE)
    drawn_by: ClassVar = "modeling"
    """The module beside this one whose `build` makes the model."""

    def facts(self) -> ModelFacts:
        """The shape above, or that of the argument, with a context that is as good as endless."""
        if self.argument is None:
            return self.shape
        layers, hidden, heads = self.sizes("LAYERS", "HIDDEN", "HEADS", default="2x64x2")
        if hidden % (2 * heads):
            raise InputError(f"model {self.label}: {hidden} channels do not make {heads} heads of an even size")
        sizes = {"layers": layers, "hidden": hidden, "heads": heads, "kv_heads": heads, "intermediate": 2 * hidden}
        return self.shape.model_copy(update=sizes | {"context": 2**20})

    def weights_hash(self) -> str:
        """Hash of the shape and of the code that draws the weights."""
        made_by = (Path(__file__).parent / f"{self.drawn_by}.py").read_bytes()
        return hashlib.sha256(self.facts().model_dump_json().encode() + made_by).hexdigest()[:16]

    def load(self, request: LoadRequest, seed: int) -> "nn.Module":
        """New weights from the seed, the same for all stacks of a round."""
        if request.quantization_config is not None:
            raise InputError(f"model {self.label}: random weights cannot be quantized while they are loaded")
        with seeded(seed):
            model: nn.Module = import_module(f".{self.drawn_by}", __package__).build(self.facts(), request)
            return model

    def tokenizer(self) -> Tokenizer:
        """Bytes."""
        return ByteTokenizer()


class TinyEncoder(TinyDecoder):
    """A bidirectional byte-level EuroBERT, as tiny-decoder otherwise: rotary positions, 2 layers, 64 channels, token shift."""

    name: ClassVar = "tiny-encoder"
    shape: ClassVar = ModelFacts(model_type="eurobert", causal=False, **_SHAPE)


class PlainDecoder(TinyDecoder):
    """A causal byte-level Llama without the token shift, for sizes and not for recall: `plain-decoder:LAYERSxHIDDENxHEADS`."""

    name: ClassVar = "plain-decoder"
    drawn_by: ClassVar = "plain"


@hookimpl
def register_models(register: "Callable[[type[ModelSource]], None]") -> None:
    """Register the models that are trained from scratch."""
    for source in (TinyDecoder, TinyEncoder, PlainDecoder):
        register(source)
