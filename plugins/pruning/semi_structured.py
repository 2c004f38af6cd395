"""Two zeros in every four weights."""

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from effbench.plugin import Context, Inference, InputError

from .masking import Masking

if TYPE_CHECKING:
    from torch import Tensor, nn


class SemiStructured(Masking):
    """Two of every four neighbouring weights are zero, as NVIDIA's GPUs can skip (Mishra et al. 2021, arXiv 2104.08378).

    On CUDA with 16-bit weights, layers whose sizes PyTorch's 2:4 kernels take are packed into half the bytes and multiplied by
    them; everywhere else these are masks like others, which save no time. Half of the weights go, no more and no less: on a
    small model that costs quality, more than the same sparsity without the pattern. It does not help at small batch sizes on
    models so small that a product is over before the kernel has started, nor where a merge fills the zeros again (a layer that
    lost the pattern stays dense). Layers whose inputs are no multiple of four stay whole.
    """

    name: ClassVar = "semi_structured"
    imports: ClassVar = (*Masking.imports, f"{__package__}.scores")

    criterion: Literal["magnitude", "wanda"] = Field(
        default="magnitude", description="which two stay: the largest, or those with the largest |weight| × norm of its input"
    )
    batches: int = Field(
        default=8, ge=1, description="wanda: calibration batches, at the cell's batch size and sequence length"
    )

    def masks(self, model: "nn.Module", layers: "dict[str, nn.Module]", ctx: Context) -> "dict[str, Tensor]":
        """Two of four by score."""
        from .masks import rows, two_of_four
        from .scores import size_by_input

        layers = {name: layer for name, layer in layers.items() if rows(layer).shape[1] % 4 == 0}
        if not layers:
            raise InputError("semi_structured: no linear layer's inputs are a multiple of four")
        if self.criterion == "wanda":
            scores = size_by_input(model, layers, ctx.calibration(self.batches))
        else:
            scores = {name: rows(layer).abs() for name, layer in layers.items()}
        return {name: two_of_four(score) for name, score in scores.items()}

    def infer(self, inference: Inference, ctx: Context) -> Inference:
        """Hand the pattern to the kernels, where there are any."""
        inference = super().infer(inference, ctx)
        if ctx.device.type != "cuda":
            return inference
        from .masks import pack_two_of_four

        return replace(inference, model=pack_two_of_four(inference.model))
