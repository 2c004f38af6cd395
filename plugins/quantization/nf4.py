"""4-bit NormalFloat weights."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from effbench.plugin import Context

from .weights import BeforeOrAfter

if TYPE_CHECKING:
    from torch import Tensor, nn


class NF4(BeforeOrAfter):
    """Weights of linear layers in 4-bit NormalFloat, levels for a normal distribution (Dettmers et al. 2023, arXiv 2305.14314).

    On bitsandbytes. By default it converts before training and freezes the model, so that QLoRA is the plain list
    `["nf4", "lora"]`; alone it has nothing to train: `at = "infer"` trains in float and converts afterwards. A block of weights
    shares a scale, and scales are themselves in 8 bits (`double`): about 4.13 bits per weight. Every call unpacks the weights:
    it saves memory and not time. Embeddings and the head stay float, as does what a model asks to keep in float32 (T5). Merging
    LoRA rounds the sum to NF4 again; `merged = false` avoids that. Needs bitsandbytes.
    """

    name: ClassVar = "nf4"
    requires: ClassVar = ("bitsandbytes",)
    imports: ClassVar = (*BeforeOrAfter.imports, "bitsandbytes")

    at: Literal["infer", "apply"] = Field(
        default="apply", description="convert before training and freeze the model, for adapters behind it, or after training"
    )
    block_size: Literal[32, 64, 128, 256, 512] = Field(default=64, description="weights that share a scale")
    double: bool = Field(default=True, description="quantize the scales as well, to 8 bits in blocks of 256")

    def convert(self, model: "nn.Module", ctx: Context) -> "nn.Module":
        """Convert in place; bitsandbytes packs when the layer is moved to its device."""
        from bitsandbytes.nn import Linear4bit, Params4bit

        from .layers import linear_layers, replace_each

        def packed(layer: "nn.Linear") -> "nn.Module":
            weight = layer.weight
            new: Any = Linear4bit(
                layer.in_features, layer.out_features, compute_dtype=weight.dtype, quant_type="nf4", device="meta"
            )
            new.weight = Params4bit(
                weight.detach().cpu(),
                requires_grad=False,
                quant_type="nf4",
                compress_statistics=self.double,
                blocksize=self.block_size,
                module=new,
            )
            new.bias = layer.bias
            converted: nn.Module = new.to(ctx.device)
            return converted

        kept = set(getattr(model, "_keep_in_fp32_modules", None) or ())  # T5 casts its input to this layer's weight type
        layers = {n: layer for n, layer in linear_layers(model, self.name).items() if kept.isdisjoint(n.split("."))}
        model.is_loaded_in_4bit = True  # type: ignore[assignment]  # by which peft knows to merge through bitsandbytes
        return replace_each(model, layers, packed)

    def restore(self, tensors: "dict[str, Tensor]", model: "nn.Module", ctx: Context) -> "dict[str, Tensor]":
        """Put the packed weights with their scales into the layers again."""
        from bitsandbytes.nn import Linear4bit, Params4bit

        state = dict(tensors)
        for name, layer in model.named_modules():
            if isinstance(layer, Linear4bit):
                weight = f"{name}.weight"
                parts = {part: state.pop(part) for part in list(state) if part.startswith(f"{weight}.")}
                statistics = {part.removeprefix(f"{weight}."): tensor for part, tensor in parts.items()}
                layer.weight = Params4bit.from_prequantized(state[weight], statistics, device=ctx.device, module=layer)
                state |= parts
        return state
