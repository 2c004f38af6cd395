"""8-bit floats."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from effbench.plugin import Cell, Context

from .weights import PostTraining

if TYPE_CHECKING:
    from torch import nn


class Fp8(PostTraining):
    """Weights and activations of linear layers in float8, scaled as they come (Micikevicius et al. 2022, arXiv 2209.05433).

    On torchao and the float8 matrix units of CUDA devices of compute capability 8.9 or newer (Ada, Hopper); nothing like them
    exists on CPUs. A quarter of float32's bytes and up to twice the rate of bfloat16's products, where these are large: it does
    not help decoding at small batch sizes beyond the bytes saved, nor small models. Embeddings and the head stay as they are.
    Needs torchao.
    """

    name: ClassVar = "fp8"
    sets: ClassVar = ("linear weights", "activations")
    requires: ClassVar = ("torchao",)
    imports: ClassVar = (*PostTraining.imports, "torchao.quantization")

    scale: Literal["row", "tensor"] = Field(default="row", description="a scale for each row, or one for the whole matrix")
    activations: bool = Field(default=True, description="false: only the weights are float8, and products are done in 16 bits")

    def unsupported(self, cell: Cell) -> str | None:
        """Only CUDA devices have float8 units."""
        return None if cell.device == "cuda" else "float8 products need a CUDA device of compute capability 8.9 or newer"

    def convert(self, model: "nn.Module", ctx: Context) -> "nn.Module":
        """Convert in place."""
        from torchao import quantization
        from torchao.quantization.granularity import PerRow, PerTensor

        from .layers import linear_layers

        layers = linear_layers(model, self.name)
        config: Any = quantization.Float8WeightOnlyConfig()
        if self.activations:
            granularity = PerRow() if self.scale == "row" else PerTensor()
            config = quantization.Float8DynamicActivationFloat8WeightConfig(granularity=granularity)
        quantization.quantize_(model, config, lambda _, name: name in layers)
        return model
