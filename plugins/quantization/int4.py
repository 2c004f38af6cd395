"""4-bit weights with a scale and a zero point for each group."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from effbench.plugin import Context, InputError

from .weights import PostTraining

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .layers import Codes

_ROW_TILE = 16  # outputs that torchao's CPU kernel takes at once


class Int4(PostTraining):
    """Weights of linear layers in 4 bits, rounded to nearest in groups (the baseline of Frantar et al. 2022, arXiv 2210.17323).

    On torchao's kernels for CPUs and CUDA. A layer that they do not take (outputs not a multiple of 16, inputs not one of the
    group size) and `group_size = "row"` are packed and unpacked by effbench instead: as small, and slower than float. A scale
    and a zero point per group cost bits too: groups of 32 take 6 bits per weight beside float32 scales, 5 beside bfloat16. It
    does not help where computing takes the time, and loses quality on small models. Gradients do not pass the kernels: to train
    beside 4-bit weights use `nf4`. Needs torchao; on CUDA bfloat16 weights as well.
    """

    name: ClassVar = "int4"
    requires: ClassVar = ("torchao",)
    imports: ClassVar = (*PostTraining.imports, "torchao.prototype.quantization.int4")

    group_size: Literal[32, 64, 128, "row"] = Field(
        default=32, description="weights along the inputs that share a scale; row: all of an output's"
    )

    def convert(self, model: "nn.Module", ctx: Context) -> "nn.Module":
        """Convert in place, each layer for the kernel that takes it."""
        from torchao.quantization import quantize_

        from .layers import OwnTypeLinear, PackedLinear, linear_layers, replace_each

        layers = linear_layers(model, self.name)
        fast = {name for name, layer in layers.items() if self._fits(layer)}
        if fast:
            replace_each(model, {name: layers[name] for name in fast}, OwnTypeLinear)
            quantize_(model, self._kernel(layers[next(iter(fast))], ctx), lambda _, name: name in fast)
        rest = {name: layer for name, layer in layers.items() if name not in fast}
        return replace_each(model, rest, lambda layer: PackedLinear(layer, self._rule, bits=4))

    def _fits(self, layer: "nn.Linear") -> bool:
        return self.group_size != "row" and layer.in_features % self.group_size == 0 and layer.out_features % _ROW_TILE == 0

    def _kernel(self, layer: "nn.Linear", ctx: Context) -> Any:
        if ctx.device.type == "cpu":
            from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

            return PrototypeInt4WeightOnlyConfig(group_size=self.group_size, set_inductor_config=False)
        import torch
        from torchao.quantization import Int4WeightOnlyConfig

        if layer.weight.dtype is not torch.bfloat16:
            raise InputError('int4 on CUDA multiplies bfloat16 alone: list bf16 before it, or set dtype = "bfloat16"')
        return Int4WeightOnlyConfig(group_size=self.group_size, int4_packing_format="tile_packed_to_4d")

    def _rule(self, weight: "Tensor") -> "Codes":
        from .layers import Codes

        whole = self.group_size == "row" or weight.shape[1] % self.group_size
        groups = weight.unflatten(1, (-1, weight.shape[1] if whole else self.group_size))
        low, high = groups.amin(-1), groups.amax(-1)
        scale = (high - low).clamp(min=1e-6) / 15
        zero = -low / scale
        values = (groups / scale.unsqueeze(-1) + zero.unsqueeze(-1)).round().clamp(0, 15)
        return Codes(values.flatten(1), scale, zero)
