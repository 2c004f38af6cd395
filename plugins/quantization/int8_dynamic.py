"""8-bit weights and activations, activations quantized as they come."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar

from effbench.plugin import Cell, Context, Technique

from .weights import BeforeOrAfter

if TYPE_CHECKING:
    from torch import Tensor, nn


class Int8Dynamic(BeforeOrAfter):
    """Linear layers in int8, activations scaled anew in every call (Dettmers et al. 2022, arXiv 2208.07339, without outliers).

    On a CPU PyTorch's own `quantize_dynamic` (oneDNN kernels), the fastest that was measured; on CUDA torchao, which it needs
    there. Weights shrink to a quarter; embeddings stay float, and so does the head, which often shares its weight with them,
    and adapters that are not merged. It does not help where layers are so small that quantizing activations costs more than
    the product saves, and nothing can be trained through it.
    """

    name: ClassVar = "int8_dynamic"
    sets: ClassVar = ("linear weights", "activations")

    def unsupported(self, cell: Cell) -> str | None:
        """On CUDA torchao is needed."""
        missing = cell.device == "cuda" and find_spec("torchao") is None
        return "needs torchao: pip install 'effbench[quantization]'" if missing else None

    def unsupported_before(self, later: Sequence[Technique]) -> str | None:
        """Nothing trains through rounded activations, not even what stands behind them."""
        adapter: Any = next((technique for technique in later if technique.family == "peft"), None)
        if self.at == "apply" and adapter is not None:
            return f"no gradient passes the activations that {self.name} rounds: list it behind {adapter.name}"
        return super().unsupported_before(later)

    def unsupported_phase(self, cell: Cell, phase: str) -> str | None:
        """Gradients do not flow through int8."""
        return 'int8 weights cannot be trained: use at = "infer"' if phase == "train" and self.at == "apply" else None

    def convert(self, model: "nn.Module", ctx: Context) -> "nn.Module":
        """Convert in place, with the library that is fast on this device."""
        from .layers import linear_layers

        layers = linear_layers(model, self.name)
        if ctx.device.type == "cuda":
            from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

            quantize_(model, Int8DynamicActivationInt8WeightConfig(), lambda _, name: name in layers)
            return model

        import warnings

        import torch
        from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic

        from .dynamic import Int8DynamicLinear

        with warnings.catch_warnings():
            # Deprecated in favour of torchao, whose int8 kernels were 2–10 times slower on CPUs when measured.
            warnings.filterwarnings("ignore", "torch.ao.quantization is deprecated", DeprecationWarning)
            warnings.filterwarnings("ignore", "torch.quantize_per_tensor, torch.quantize_per_channel", UserWarning)
            converted: nn.Module = quantize_dynamic(
                model.eval(),
                dict.fromkeys(layers, per_channel_dynamic_qconfig),
                dtype=torch.qint8,
                mapping={torch.nn.Linear: Int8DynamicLinear},
                inplace=True,
            )
        return converted

    def store(self, tensors: "dict[str, Tensor]", ctx: Context) -> "dict[str, Tensor]":
        """Integers and scales of `quantize_dynamic` as plain tensors, so that a checkpoint is as small as it really can be.

        Weights are symmetric per output channel: all zero points are 0 and are not written.
        """
        import torch

        plain: dict[str, Tensor] = {}
        value: Any
        for name, value in tensors.items():
            if isinstance(value, tuple):  # quantize_dynamic's (weight, bias)
                weight, bias = value
                stem = name.removesuffix("._packed_params._packed_params")
                plain.pop(f"{stem}.zero_point", None)  # of activations, as is the scale: placeholders in a dynamic layer
                plain[f"{stem}.weight_int8"] = weight.int_repr()
                plain[f"{stem}.scale"] = weight.q_per_channel_scales().float()  # float64 of what was found in float32
                if bias is not None:
                    plain[f"{stem}.bias"] = bias
            elif isinstance(value, torch.Tensor):
                plain[name] = value
        return plain

    def restore(self, tensors: "dict[str, Tensor]", model: "nn.Module", ctx: Context) -> "dict[str, Tensor]":
        """Pack integers and scales again."""
        import torch

        state: dict[str, Any] = dict(tensors)
        for stem in [name.removesuffix(".weight_int8") for name in tensors if name.endswith(".weight_int8")]:
            layer: Any = model.get_submodule(stem)
            values, scale = state.pop(f"{stem}.weight_int8"), state.pop(f"{stem}.scale")
            zeros = torch.zeros_like(scale, dtype=torch.long)
            weight = torch._make_per_channel_quantized_tensor(values, scale.double(), zeros, 0)
            layer.set_weight_bias(weight, state.pop(f"{stem}.bias", None))
            state |= {f"{stem}.{key}": value for key, value in layer.state_dict().items()}
        return state
