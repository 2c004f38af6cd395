"""Weights of one sign, or of one sign and zero, with a scale."""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from effbench.plugin import Context

from .weights import PostTraining

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .layers import Codes


class _BitNet(PostTraining):
    bits: ClassVar[int]

    at: Literal["infer", "train"] = Field(
        default="infer",
        description="round once after training, or train rounded weights: gradients pass the rounding unchanged",
    )
    scale: Literal["tensor", "row"] = Field(default="tensor", description="one scale for a matrix, or for each of its outputs")

    def rule(self, weight: "Tensor") -> "Codes":
        """The weight as integers and a scale."""
        raise NotImplementedError

    def apply(self, model: "nn.Module", ctx: Context) -> "nn.Module":
        """Round in every forward pass from now on, if asked to."""
        if self.at == "infer":
            return model
        from .layers import RoundedLinear, linear_layers, replace_each

        return replace_each(model, linear_layers(model, self.name), lambda layer: RoundedLinear(layer, self.rule))

    def convert(self, model: "nn.Module", ctx: Context) -> "nn.Module":
        """Pack in place."""
        from torch import nn

        from .layers import PackedLinear, RoundedLinear, linear_layers, replace_each

        layers = linear_layers(model, self.name, RoundedLinear if self.at == "train" else nn.Linear)
        return replace_each(model, layers, lambda layer: PackedLinear(layer, self.rule, self.bits))

    def mean(self, weight: "Tensor") -> "Tensor":
        """Over what shares a scale: (1, 1) or (outputs, 1)."""
        return weight.mean(dim=1, keepdim=True) if self.scale == "row" else weight.mean().view(1, 1)


class Ternary(_BitNet):
    """Weights of linear layers are -1, 0 or 1 times a scale, as in BitNet b1.58 (Ma et al. 2024, arXiv 2402.17764).

    The scale is the mean size of the weights. Stored in 2 bits each. Rounding a trained model loses most of its quality: the
    method is meant for training with rounded weights (`at = "train"`, straight-through gradients), and even that needs long
    training. Weights alone: BitNet's 8-bit activations are left out. Embeddings and the head stay float. It saves bytes and no
    time: PyTorch has no kernel for such weights, so they are unpacked in every call.
    """

    name: ClassVar = "ternary"
    bits: ClassVar = 2

    def rule(self, weight: "Tensor") -> "Codes":
        """Round to the nearest of -1, 0, 1 after division by the mean size."""
        from .layers import Codes

        scale = self.mean(weight.abs()).clamp(min=1e-5)
        return Codes((weight / scale).round().clamp(-1, 1) + 1, scale, 1.0)


class Binary(_BitNet):
    """Weights of linear layers are 1 or -1 times a scale, as in BitNet (Wang et al. 2023, arXiv 2310.11453).

    The sign is that of the weight less the mean of all, the scale the mean size. Stored in 1 bit each. What is said of
    `ternary` holds all the more: rounding a trained model destroys it, `at = "train"` recovers a part, no time is saved.
    """

    name: ClassVar = "binary"
    bits: ClassVar = 1

    def rule(self, weight: "Tensor") -> "Codes":
        """0 and 1 for the signs: (value - 1/2) × twice the scale."""
        from .layers import Codes

        scale = 2 * self.mean(weight.abs()).clamp(min=1e-5)
        return Codes((weight > self.mean(weight)).to(weight.dtype), scale, 0.5)
