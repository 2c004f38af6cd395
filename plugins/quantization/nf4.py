"""4-bit NormalFloat weights."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from effbench.plugin import Context, Inference, InputError

from .weights import BeforeOrAfter

if TYPE_CHECKING:
    from torch import Tensor, nn


_BLOCK_SIZES = (512, 256, 128, 64, 32)


class NF4(BeforeOrAfter):
    """Weights of linear layers in 4-bit NormalFloat, levels for a normal distribution (Dettmers et al. 2023, arXiv 2305.14314).

    On bitsandbytes. By default it converts before training and freezes the model, so that QLoRA is the plain list
    `["nf4", "lora"]`; alone it has nothing to train: `at = "infer"` trains in float and converts afterwards. A block of weights
    shares a scale, and scales are themselves in 8 bits (`double`): about 4.13 bits per weight. Every call unpacks the weights:
    it saves memory and not time. CPUs with AVX512-BF16 have a fused kernel for inference, in bfloat16. Embeddings and the head
    stay float, as does what a model asks to keep in float32 (T5), and a layer whose inputs 32 does not divide. Merging LoRA
    rounds the sum to NF4 again; `merged = false` avoids that. Needs bitsandbytes.
    """

    name: ClassVar = "nf4"
    requires: ClassVar = ("bitsandbytes",)
    imports: ClassVar = (*BeforeOrAfter.imports, f"{__package__}.four_bit")

    at: Literal["infer", "apply"] = Field(
        default="apply", description="convert before training and freeze the model, for adapters behind it, or after training"
    )
    block_size: Literal[32, 64, 128, 256, 512] = Field(
        default=64, description="weights that share a scale; in layers whose inputs it does not divide a smaller one"
    )
    double: bool = Field(default=True, description="quantize the scales as well, to 8 bits in blocks of 256")

    def convert(self, model: "nn.Module", ctx: Context) -> "nn.Module":
        """Convert in place; bitsandbytes packs when the layer is moved to its device."""
        from bitsandbytes.nn import Params4bit

        from .four_bit import NF4Linear
        from .layers import linear_layers, replace_each

        def packed(layer: "nn.Linear") -> "nn.Module":
            weight = layer.weight
            new: Any = NF4Linear(layer.in_features, layer.out_features, compute_dtype=weight.dtype)
            new.weight = Params4bit(
                weight.detach().cpu(),
                requires_grad=False,
                quant_type="nf4",
                compress_statistics=self.double,
                blocksize=self._block(layer),
                module=new,
            )
            new.bias = layer.bias
            converted: nn.Module = new.to(ctx.device)
            return converted

        kept = set(getattr(model, "_keep_in_fp32_modules", None) or ())  # T5 casts its input to this layer's weight type
        layers = {
            name: layer
            for name, layer in linear_layers(model, self.name).items()
            if self._block(layer) and kept.isdisjoint(name.split("."))
        }
        if not layers:
            raise InputError(f"nf4: no linear layer whose inputs are a multiple of {_BLOCK_SIZES[-1]}")
        model.is_loaded_in_4bit = True  # type: ignore[assignment]  # by which peft knows to merge through bitsandbytes
        return replace_each(model, layers, packed)

    def infer(self, inference: Inference, ctx: Context) -> Inference:
        """Convert, unless that was done before, and use bitsandbytes' fused kernel where this CPU has it."""
        from .four_bit import NF4Linear

        inference = super().infer(inference, ctx)
        for layer in inference.model.modules():
            if isinstance(layer, NF4Linear):
                layer.fuse()
        return inference

    def _block(self, layer: "nn.Linear") -> int | None:
        """The largest that rows are made of: bitsandbytes' AVX-512 kernels begin each row with a scale of its own."""
        return next((size for size in _BLOCK_SIZES if size <= self.block_size and layer.in_features % size == 0), None)

    def restore(self, tensors: "dict[str, Tensor]", model: "nn.Module", ctx: Context) -> "dict[str, Tensor]":
        """Put the packed weights with their scales into the layers again."""
        from bitsandbytes.nn import Params4bit

        from .four_bit import NF4Linear

        state = dict(tensors)
        for name, layer in model.named_modules():
            if isinstance(layer, NF4Linear):
                weight = f"{name}.weight"
                parts = {part: state.pop(part) for part in list(state) if part.startswith(f"{weight}.")}
                statistics = {part.removeprefix(f"{weight}."): tensor for part, tensor in parts.items()}
                layer.weight = Params4bit.from_prequantized(state[weight], statistics, device=ctx.device, module=layer)
                state |= parts
        return state
