"""8-bit weights, float products."""

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

from effbench.plugin import Context

from .weights import BeforeOrAfter

if TYPE_CHECKING:
    from torch import nn


class Int8WeightOnly(BeforeOrAfter):
    """Weights of linear layers as int8 with one scale per output, products in float (Dettmers et al. 2022, arXiv 2208.07339).

    On torchao. A quarter of float32's bytes at hardly any loss of quality, since activations are not rounded. Every call turns
    the weights into floats again: it helps where reading them takes the time (decoding on GPUs, compiled), and not where
    computing does: prefill and training get slower. Embeddings and the head stay float. With `at = "apply"` LoRA behind it
    trains beside the frozen int8 weights; merging rounds the sum to int8 again. Needs torchao.
    """

    name: ClassVar = "int8_weight_only"
    requires: ClassVar = ("torchao",)
    imports: ClassVar = (*BeforeOrAfter.imports, "torchao.quantization")

    def convert(self, model: "nn.Module", ctx: Context) -> "nn.Module":
        """Convert in place."""
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        from .layers import linear_layers

        layers = linear_layers(model, self.name)
        quantize_(model, Int8WeightOnlyConfig(), lambda _, name: name in layers)
        if self.at == "apply":
            # Where transformers would have left the recipe, had it quantized while loading: peft merges by it.
            recipe: Any = SimpleNamespace(quantization_config=SimpleNamespace(get_apply_tensor_subclass=Int8WeightOnlyConfig))
            model.hf_quantizer = recipe
        return model
