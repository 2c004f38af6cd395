"""8-bit weights and activations, activations quantized as they come."""

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from effbench.plugin import Cell, Context, Inference, InputError, Technique, hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn


class Int8Dynamic(Technique):
    """Linear layers in int8, activations scaled anew in every call (Dettmers et al. 2022, arXiv 2208.07339, without outliers).

    On a CPU PyTorch's own `quantize_dynamic` (oneDNN kernels), the fastest that was measured; on CUDA torchao, which it needs
    there. Weights shrink to a quarter; embeddings stay float, and so does the head, which often shares its weight with them,
    and adapters that are not merged. It does not help where layers are so small that quantizing activations costs more than
    the product saves, and nothing can be trained through it.
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
        """Integers and scales as plain tensors, so that a checkpoint is as small as it really can be.

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
            elif hasattr(value, "qdata"):  # torchao's
                stem = name.removesuffix(".weight")
                plain[f"{stem}.weight_int8"], plain[f"{stem}.scale"] = value.qdata, value.scale
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
            if hasattr(layer.weight, "qdata"):  # torchao's
                layer.weight.qdata.copy_(values)
                layer.weight.scale.copy_(scale)
                state[f"{stem}.weight"] = layer.weight
            else:
                zeros = torch.zeros_like(scale, dtype=torch.long)
                weight = torch._make_per_channel_quantized_tensor(values, scale.double(), zeros, 0)
                layer.set_weight_bias(weight, state.pop(f"{stem}.bias", None))
                state |= {f"{stem}.{key}": value for key, value in layer.state_dict().items()}
        return state


def _convert(model: "nn.Module", ctx: Context) -> "nn.Module":
    import torch

    _untranspose(model)
    layers = _layers(model)
    if ctx.device.type == "cuda":
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

        quantize_(model, Int8DynamicActivationInt8WeightConfig(), lambda _, name: name in layers)
        return model

    import warnings

    from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic

    with warnings.catch_warnings():
        # Deprecated in favour of torchao, whose int8 kernels were 2–10 times slower on CPUs when measured.
        warnings.filterwarnings("ignore", "torch.ao.quantization is deprecated", DeprecationWarning)
        warnings.filterwarnings("ignore", "torch.quantize_per_tensor, torch.quantize_per_channel", UserWarning)
        converted: nn.Module = quantize_dynamic(
            model.eval(), dict.fromkeys(layers, per_channel_dynamic_qconfig), dtype=torch.qint8, inplace=True
        )
    return converted


def _untranspose(model: "nn.Module") -> None:
    """GPT-2's Conv1D is a linear layer with its weight transposed, which no int8 kernel takes: make it a Linear."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    for name, module in list(model.named_modules()):
        if isinstance(module, Conv1D):
            linear = nn.Linear(module.nx, module.nf, device="meta")
            linear.weight = nn.Parameter(module.weight.detach().t().contiguous(), requires_grad=False)
            linear.bias = module.bias
            model.set_submodule(name, linear)


def _layers(model: "nn.Module") -> set[str]:
    """Names of the linear layers to convert: not the head, nor an adapter's own, whose weights peft reads as float."""
    from torch import nn

    getter: Any = getattr(model, "get_output_embeddings", lambda: None)
    head = getter()
    modules = dict(model.named_modules())
    wrappers = {name: module for name, module in modules.items() if isinstance(getattr(module, "base_layer", None), nn.Module)}
    if any(len(getattr(module, "lora_magnitude_vector", ())) for module in wrappers.values()):
        raise InputError("int8_dynamic: unmerged DoRA reads the float weights in every call; merge it first")
    adapters = {id(part) for module in wrappers.values() for part in module.modules()}
    adapters -= {id(module.base_layer) for module in wrappers.values()}
    found = {n for n, m in modules.items() if type(m) is nn.Linear and m is not head and id(m) not in adapters}
    if not found:  # a row of the board called int8 that measures the untouched model would be a lie
        raise InputError("int8_dynamic: no float linear layer to convert; another technique may have converted them")
    return found


@hookimpl
def register_techniques(register: "Callable[[type[Technique]], None]") -> None:
    """Register dynamic int8."""
    register(Int8Dynamic)
