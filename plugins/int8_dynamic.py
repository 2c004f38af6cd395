"""8-bit weights and activations, activations quantized as they come."""

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from effbench.plugin import Cell, Context, Inference, Technique, hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn


class Int8Dynamic(Technique):
    """Linear layers in int8, activations scaled anew in every call (Dettmers et al. 2022, arXiv 2208.07339, without outliers).

    On a CPU PyTorch's own `quantize_dynamic` (oneDNN kernels), the fastest that was measured; on CUDA torchao. Weights shrink
    to a quarter; embeddings and the head stay. It does not help where layers are so small that quantizing activations costs
    more than the product saves, and nothing can be trained through it.
    """

    name: ClassVar = "int8_dynamic"
    family: ClassVar = "quantization"
    sets: ClassVar = ("linear weights",)

    at: Literal["infer", "apply"] = Field(
        default="infer", description="after training, or before it (then training is skipped)"
    )

    def unsupported(self, cell: Cell) -> str | None:
        """On CUDA torchao is needed."""
        missing = cell.device == "cuda" and find_spec("torchao") is None
        return "needs torchao: pip install 'effbench[quantization]'" if missing else None

    def unsupported_phase(self, cell: Cell, phase: str) -> str | None:
        """Gradients do not flow through int8."""
        return 'int8 weights cannot be trained: use at = "infer"' if phase == "train" and self.at == "apply" else None

    def apply(self, model: "nn.Module", ctx: Context) -> "nn.Module":
        """Convert before training, if asked to."""
        return _convert(model, ctx) if self.at == "apply" else model

    def infer(self, inference: Inference, ctx: Context) -> Inference:
        """Convert after training."""
        return inference if self.at == "apply" else replace(inference, model=_convert(inference.model, ctx))

    def store(self, tensors: "dict[str, Tensor]", ctx: Context) -> "dict[str, Tensor]":
        """Integers, scales and zero points as plain tensors, so that a checkpoint is as small as it really can be."""
        import torch

        plain: dict[str, Tensor] = {}
        for name, value in tensors.items():
            if isinstance(value, torch.Tensor) and not value.is_quantized:
                plain[name] = value
            elif isinstance(value, tuple):  # a quantized layer's (weight, bias)
                weight, bias = value
                stem = name.removesuffix("._packed_params._packed_params")
                plain |= {
                    f"{stem}.weight_int8": weight.int_repr(),
                    f"{stem}.scale": weight.q_per_channel_scales() if _per_channel(weight) else torch.tensor(weight.q_scale()),
                }
                if bias is not None:
                    plain[f"{stem}.bias"] = bias
        return plain


def _per_channel(weight: "Tensor") -> bool:
    import torch

    return weight.qscheme() in (torch.per_channel_affine, torch.per_channel_symmetric)


def _convert(model: "nn.Module", ctx: Context) -> "nn.Module":
    import torch
    from torch import nn

    getter: Any = getattr(model, "get_output_embeddings", lambda: None)
    head = getter()
    layers = {name for name, module in model.named_modules() if type(module) is nn.Linear and module is not head}
    if ctx.device.type == "cuda":
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

        quantize_(model, Int8DynamicActivationInt8WeightConfig(), lambda _, name: name in layers)
        return model

    import warnings

    from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic

    with warnings.catch_warnings():
        # Deprecated in favour of torchao, whose int8 kernels were 2–10 times slower on CPUs when measured.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        converted: nn.Module = quantize_dynamic(
            model.eval(), dict.fromkeys(layers, per_channel_dynamic_qconfig), dtype=torch.qint8, inplace=True
        )
    return converted


@hookimpl
def register_techniques(register: "Callable[[type[Technique]], None]") -> None:
    """Register dynamic int8."""
    register(Int8Dynamic)
