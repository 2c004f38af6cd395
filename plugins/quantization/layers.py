"""Finding, packing and replacing linear layers. This module needs torch."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from effbench.plugin import InputError, layers


class Codes(NamedTuple):
    """A weight matrix as integers: weight = (values - zero) * scale, group by group along the inputs."""

    values: Tensor
    """(outputs, inputs), from 0 to 2^bits - 1."""
    scale: Tensor
    """(outputs or 1, groups)."""
    zero: Tensor | float


Rule = Callable[[Tensor], Codes]


class PackedLinear(nn.Module):
    """A linear layer whose weights lie in memory as 1, 2 or 4 bits each, and are unpacked in every call.

    No kernel multiplies them as they are, so a call costs more than the float product: this saves bytes, not time.
    """

    packed: Tensor
    shifts: Tensor
    scale: Tensor

    def __init__(self, source: nn.Linear, rule: Rule, bits: int) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bits = source.in_features, source.out_features, bits
        values, scale, zero = rule(source.weight.detach())
        whole = pad(values.to(torch.uint8), (0, -self.in_features % (8 // bits)))
        shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=whole.device)
        packed = (whole.unflatten(1, (-1, 8 // bits)) << shifts).sum(-1, dtype=torch.uint8)
        self.register_buffer("packed", packed)
        self.register_buffer("shifts", shifts, persistent=False)
        self.register_buffer("scale", scale)
        self.zero: Tensor | float
        if isinstance(zero, Tensor):
            self.register_buffer("zero", zero)
        else:
            self.zero = zero
        self.bias = source.bias

    def weight(self) -> Tensor:
        """Unpacked; a method, as in PyTorch's own quantized layers, so that nobody takes it for a parameter."""
        values = (self.packed.unsqueeze(-1) >> self.shifts) & (2**self.bits - 1)
        groups = values.flatten(1)[:, : self.in_features].unflatten(1, (self.scale.shape[1], -1)).to(self.scale.dtype)
        return _floats(groups, self.scale, self.zero)

    def forward(self, x: Tensor) -> Tensor:
        """The float product."""
        return linear(x, self.weight().to(x.dtype), self.bias)


class RoundedLinear(nn.Linear):
    """A linear layer that is used rounded and trained as float: gradients pass the rounding unchanged (straight through)."""

    def __init__(self, source: nn.Linear, rule: Rule) -> None:
        super().__init__(source.in_features, source.out_features, bias=False, device="meta")
        self.weight, self.bias, self.rule = source.weight, source.bias, rule

    def forward(self, x: Tensor) -> Tensor:
        """The product with what the weights will be once they are packed."""
        with torch.no_grad():
            values, scale, zero = self.rule(self.weight)
            rounded = _floats(values.unflatten(1, (scale.shape[1], -1)), scale, zero)
        return linear(x, self.weight + (rounded - self.weight).detach(), self.bias)


class OwnTypeLinear(nn.Linear):
    """A linear layer whose weight's kernel takes inputs of the weight's type alone, so that autocast must not change them."""

    def __init__(self, source: nn.Linear) -> None:
        super().__init__(source.in_features, source.out_features, bias=False, device="meta")
        self.weight, self.bias = source.weight, source.bias

    def forward(self, x: Tensor) -> Tensor:
        """In the weight's type."""
        if not torch.is_autocast_enabled(x.device.type):
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.to(self.weight.dtype)).to(x.dtype)


def replace_each(model: nn.Module, found: Mapping[str, nn.Module], make: Callable[[Any], nn.Module]) -> nn.Module:
    """Put `make(layer)` where each layer was; their switch between training and evaluation stays as it was."""
    for name, layer in found.items():
        model.set_submodule(name, make(layer).train(layer.training))
    return model


def linear_layers(model: nn.Module, technique: str, kind: type[nn.Linear] = nn.Linear) -> dict[str, nn.Linear]:
    """The linear layers to convert: not the head, nor an adapter's own, whose weights peft reads as float."""
    untranspose(model)
    if any(len(getattr(module, "lora_magnitude_vector", ())) for module in model.modules()):
        raise InputError(f"{technique}: unmerged DoRA reads the float weights in every call; merge it first")
    found = layers.linear_layers(model, (kind,))
    if not found:  # a row of the board that is named after this and measures the untouched model would be a lie
        raise InputError(f"{technique}: no float linear layer to convert; another technique may have converted them")
    return found


def untranspose(model: nn.Module) -> None:
    """GPT-2's Conv1D is a linear layer with its weight transposed, which no integer kernel takes: make it a Linear."""
    from transformers.pytorch_utils import Conv1D

    for name, module in list(model.named_modules()):
        if isinstance(module, Conv1D):
            layer = nn.Linear(module.nx, module.nf, device="meta")
            trained = module.weight.requires_grad
            layer.weight = nn.Parameter(module.weight.detach().t().contiguous(), requires_grad=trained)
            layer.bias = module.bias
            model.set_submodule(name, layer)


def _floats(groups: Tensor, scale: Tensor, zero: Tensor | float) -> Tensor:
    """(outputs, groups, inputs of a group) → (outputs, inputs)."""
    return ((groups - (zero.unsqueeze(-1) if isinstance(zero, Tensor) else zero)) * scale.unsqueeze(-1)).flatten(1)
