"""Training in 8-bit floats."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from effbench.plugin import Cell, Context, Inference, InputError, Technique

if TYPE_CHECKING:
    from torch import nn

_MULTIPLE = 16  # of both sizes of a matrix, for float8 units


class Fp8Training(Technique):
    """Train with the products of linear layers in float8, forward and backward (Micikevicius et al. 2022, arXiv 2209.05433).

    On torchao and the float8 matrix units of CUDA devices of compute capability 8.9 or newer. Weights, gradients and optimizer
    stay as they are; inputs, weights and output gradients are rounded with scales that are found anew in each step. Up to 1.5
    times the rate of bfloat16 where matrices are several thousand wide and the rest is fused (`compile`); it does not help
    smaller models, where scaling costs more than the products save, and saves no memory. Layers whose sizes are no multiples of
    16 and the head stay as they are. Inference uses the trained weights in their own type: `fp8` behind it rounds them. Needs
    torchao.
    """

    name: ClassVar = "fp8_training"
    family: ClassVar = "precision"
    requires: ClassVar = ("torchao",)
    imports: ClassVar = (f"{__package__}.layers", "torchao.float8")

    scale: Literal["tensor", "row"] = Field(
        default="tensor",
        description="one scale for a whole matrix, or one for each row: more exact, slower, and for bfloat16 weights alone",
    )

    def unsupported(self, cell: Cell) -> str | None:
        """Only CUDA devices have float8 units, and with row scales they give bfloat16."""
        if cell.device != "cuda":
            return "float8 products need a CUDA device of compute capability 8.9 or newer"
        if self.scale == "row" and cell.dtype != "bfloat16":
            return f'row scales need bfloat16 weights; the suite\'s dtype is {cell.dtype}: use scale = "tensor"'
        return None

    def unsupported_after(self, earlier: Sequence[Technique]) -> str | None:
        """Only float layers can be trained so."""
        converting = next((t for t in earlier if "linear weights" in t.sets and getattr(t, "at", "infer") != "infer"), None)
        return f"{self.name} trains float layers, which {converting.name} converts" if converting else None

    def unsupported_before(self, later: Sequence[Technique]) -> str | None:
        """The same in the other order."""
        return self.unsupported_after(later)

    def apply(self, model: "nn.Module", ctx: Context) -> "nn.Module":
        """Swap the layers; each keeps its weight."""
        from torchao.float8 import convert_to_float8_training

        from .layers import linear_layers

        fitting = {
            name
            for name, layer in linear_layers(model, self.name).items()
            if layer.in_features % _MULTIPLE == layer.out_features % _MULTIPLE == 0
        }
        if not fitting:
            raise InputError(f"fp8_training: no linear layer whose sizes are multiples of {_MULTIPLE}")
        converted: nn.Module = convert_to_float8_training(
            model, module_filter_fn=lambda _, name: name in fitting, config=recipe(self.scale)
        )
        return converted

    def infer(self, inference: Inference, ctx: Context) -> Inference:
        """Swap them back."""
        from torchao.float8.float8_linear import Float8Linear

        from .layers import replace_each

        trained = {name: layer for name, layer in inference.model.named_modules() if isinstance(layer, Float8Linear)}
        return replace(inference, model=replace_each(inference.model, trained, _plain))


def recipe(scale: str) -> Any:
    """The recipe of that name in torchao, for any number of tokens: where it is no multiple of 16, zeros are added."""
    from torchao.float8 import Float8LinearConfig

    return replace(Float8LinearConfig.from_recipe_name(f"{scale}wise"), pad_inner_dim=True)


def _plain(layer: "nn.Linear") -> "nn.Module":
    from torch import nn

    plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    plain.weight, plain.bias = layer.weight, layer.bias
    return plain
