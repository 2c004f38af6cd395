"""All weights in 16 bits."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from effbench.plugin import Cell, Context, Inference, LoadRequest, Technique

if TYPE_CHECKING:
    from torch import nn


class _Cast(Technique):
    family: ClassVar = "quantization"
    sets: ClassVar = ("float type",)
    dtype: ClassVar[str]

    at: Literal["load", "infer"] = Field(default="load", description="when weights are loaded, or after training in float32")

    def unsupported_after(self, earlier: Sequence[Technique]) -> str | None:
        """Converted layers expect inputs of the type they were converted from."""
        converted = next((technique.name for technique in earlier if "linear weights" in technique.sets), None)
        if self.at == "infer" and converted:
            return f"{converted} converts the weights before {self.name} casts them: list it behind {self.name}"
        if "autocast" in {setting for technique in earlier for setting in technique.sets} and self.at == "load":
            return f'autocast needs float32 weights: use {self.name} with at = "infer", or leave one of the two out'
        return None

    def load(self, request: LoadRequest) -> LoadRequest:
        """Ask for weights of this type."""
        return replace(request, dtype=self.dtype) if self.at == "load" else request

    def infer(self, inference: Inference, ctx: Context) -> Inference:
        """Cast after training."""
        return inference if self.at == "load" else replace(inference, model=self._cast(inference.model))

    def _cast(self, model: "nn.Module") -> "nn.Module":
        import torch

        for parameter in model.parameters():  # and not buffers: rotary frequencies stay float32, as they do when loading
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(getattr(torch, self.dtype))
        return model


class BFloat16(_Cast):
    """All weights and products in bfloat16: float32's range, 8 bits of precision (Kalamkar et al. 2019, arXiv 1905.12322).

    Half the bytes of everything. Trained from the start (`at = "load"`), updates smaller than 1/256 of a weight are lost, which
    costs quality where `mixed_precision` would not; `at = "infer"` trains in float32 and casts what is used. It does not help
    on a CPU without instructions for bfloat16 where products are small, nor where the suite's dtype is bfloat16 already.
    """

    name: ClassVar = "bf16"
    dtype: ClassVar = "bfloat16"


class Float16(_Cast):
    """All weights and products in float16: 11 bits of precision, up to 65,504 (Micikevicius et al. 2017, arXiv 1710.03740).

    Half the bytes of everything, and rounding errors an eighth of bfloat16's. It is for inference: AdamW's ε of 1e-8 is 0 in
    float16, so training is skipped unless it happens in float32 before (`at = "infer"`) or under `mixed_precision`. It does not
    help where activations overflow, nor in time on CPUs, whose products of float16 are slower than those of float32.
    """

    name: ClassVar = "fp16"
    dtype: ClassVar = "float16"

    def unsupported_phase(self, cell: Cell, phase: str) -> str | None:
        """The optimizer divides by zero."""
        if phase == "train" and self.at == "load":
            return 'AdamW cannot train float16 weights (its ε is 0 there): use at = "infer", or mixed_precision'
        return None
