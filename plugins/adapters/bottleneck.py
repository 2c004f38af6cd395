"""The adapter, and where in a transformers model it goes."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from effbench.plugin import InputError


class Bottleneck(nn.Module):
    """Down, a nonlinearity, up; nothing at all until it is trained."""

    def __init__(self, width: int, bottleneck: int, activation: str, device: torch.device) -> None:
        super().__init__()
        self.activation = activation
        self.down = nn.Linear(width, bottleneck, device=device)
        self.up = nn.Linear(bottleneck, width, device=device)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """What is to be added to x."""
        # Adapters stay float32 beside 16-bit weights, as peft keeps its own: small updates would be lost in 16 bits.
        hidden = getattr(functional, self.activation)(self.down(x.to(self.down.weight.dtype)))
        result: Tensor = self.up(hidden).to(x.dtype)
        return result


class AdaptedLayer(nn.Module):
    """A sublayer's last projection with an adapter behind it. `base_layer` is what peft calls the wrapped layer too."""

    def __init__(self, base_layer: nn.Module, bottleneck: int, activation: str) -> None:
        super().__init__()
        self.base_layer = base_layer
        weight: Any = base_layer.weight
        self.adapter = Bottleneck(_width(base_layer), bottleneck, activation, weight.device)

    @property
    def weight(self) -> Any:
        """The projection's own: T5 looks at its dtype."""
        return self.base_layer.weight

    def forward(self, x: Tensor) -> Tensor:
        """The projection and its correction."""
        y: Tensor = self.base_layer(x)
        corrected: Tensor = y + self.adapter(y)
        return corrected


def output_projections(model: nn.Module, layers: Sequence[int] | None, *, attention: bool) -> list[str]:
    """Names of the last linear layer of each feed-forward sublayer, and of each attention sublayer if wanted."""
    hidden = getattr(getattr(model, "config", None), "hidden_size", None)
    found: list[str] = []
    for prefix, stack in _layer_lists(model):
        indices = range(len(stack)) if layers is None else layers
        if beyond := [index for index in indices if not -len(stack) <= index < len(stack)]:
            raise InputError(f"adapters: the model has {len(stack)} layers; there is no layer {beyond[0]}")
        for index in sorted({index % len(stack) for index in indices}):
            attentions, feed_forward = _sublayers(stack[index])
            for linears in [*(attentions if attention else []), feed_forward]:
                if not linears or (hidden and _width(linears[-1][1]) != hidden):
                    kind = type(stack[index]).__name__
                    raise InputError(f"adapters: found no output projection of {hidden} features in a sublayer of {kind}")
                found.append(f"{prefix}.{index}.{linears[-1][0]}")
    if not found:
        raise InputError(f"adapters: found no list of transformer layers in {type(model).__name__}")
    return found


def _layer_lists(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.ModuleList]]:
    """The outermost module lists whose elements have attention: a decoder's, an encoder's, or T5's two."""
    for name, child in model.named_children():
        path = f"{prefix}.{name}".lstrip(".")
        if isinstance(child, nn.ModuleList) and len(child) and _sublayers(child[0])[0]:
            yield path, child
        else:
            yield from _layer_lists(child, path)


def _sublayers(layer: nn.Module) -> tuple[list[list[tuple[str, nn.Module]]], list[tuple[str, nn.Module]]]:
    """Linear layers, in order of definition: by outermost attention module, and all the others, which are feed-forward's."""
    attentions = [name for name, module in layer.named_modules() if "Attention" in type(module).__name__]
    outermost = [name for name in attentions if not any(name.startswith(f"{other}.") for other in attentions)]
    linears = [(name, module) for name, module in layer.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    by_attention = [[(n, m) for n, m in linears if n.startswith(f"{attention}.")] for attention in outermost]
    inside = {name for group in by_attention for name, _ in group}
    return by_attention, [(name, module) for name, module in linears if name not in inside]


def _width(linear: nn.Module) -> int:
    width: Any = linear.nf if isinstance(linear, Conv1D) else linear.out_features
    return int(width)
