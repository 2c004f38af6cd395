"""The linear layers around attention heads, and how to make them smaller. This module needs torch."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from effbench.plugin import InputError

from .cache import attention_modules

_INPUTS = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), ("q_lin", "k_lin", "v_lin"), ("c_attn",))
_OUTPUTS = ("o_proj", "out_proj", "c_proj", "out_lin", "dense")


@dataclass(frozen=True)
class Projections:
    """One attention module and its projections: of q, k and v, or one for all three, and of the output."""

    attention: Any
    inputs: tuple[Any, ...]
    output: Any
    channels: int
    """Of a head."""

    @property
    def heads(self) -> int:
        """Query heads."""
        return _weight(self.output).shape[1] // self.channels

    @property
    def kv_heads(self) -> int:
        """Key heads."""
        all_heads = sum(len(_weight(layer)) for layer in self.inputs) // self.channels
        return (all_heads - self.heads) // 2

    def keep(self, kv_heads: Tensor) -> None:
        """Remove all other key heads, and the query heads that share them."""
        shared = self.heads // self.kv_heads
        heads = (kv_heads[:, None] * shared + torch.arange(shared)).view(-1, 1)
        output = _weight(self.output).unflatten(1, (-1, self.channels))[:, heads[:, 0]].flatten(1)
        self._combine(heads, kv_heads[:, None])
        _set(self.output, output, self.output.bias)

    def pool(self, groups: int) -> None:
        """Make one key head of each group of neighbours, their mean, and one value head likewise."""
        attention = self.attention
        if not hasattr(attention, "num_key_value_groups") and attention.config._attn_implementation == "eager":
            raise InputError(f"eager attention of {attention.config.model_type} knows no grouped heads: use another kernel")
        self._combine(torch.arange(self.heads)[:, None], torch.arange(self.kv_heads).view(groups, -1))

    def _combine(self, heads: Tensor, kv_heads: Tensor) -> None:
        """Each new head is the mean of a row of old ones (new, any)."""
        parts = (heads, kv_heads + self.heads, kv_heads + self.heads + self.kv_heads)
        weight = torch.cat([_weight(layer) for layer in self.inputs]).unflatten(0, (-1, self.channels))
        weights = [weight[part].mean(1).flatten(0, 1) for part in parts]
        biases: list[Any] = [None] * 3
        if self.inputs[0].bias is not None:
            bias = torch.cat([layer.bias for layer in self.inputs]).view(-1, self.channels)
            biases = [bias[part].mean(1).flatten() for part in parts]
        if len(self.inputs) == 1:  # the module splits what the one layer gives
            self.attention.split_size = [len(weight) for weight in weights]
            weights, biases = [torch.cat(weights)], [torch.cat(biases)]  # a Conv1D always has a bias
        for layer, new_weight, new_bias in zip(self.inputs, weights, biases, strict=True):
            _set(layer, new_weight, new_bias)
        self._tell(len(heads), len(kv_heads))

    def _tell(self, heads: int, kv_heads: int) -> None:
        """What the module itself says of its heads."""
        facts = {
            "num_heads": heads,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "all_head_size": heads * self.channels,
        }
        for name, value in facts.items():
            if hasattr(self.attention, name):
                setattr(self.attention, name, value)
        self.attention.num_key_value_groups = heads // kv_heads


def projections_of(model: nn.Module, technique: str) -> list[Projections]:
    """Of every layer. InputError where they are not plain linear layers under a known name."""
    modules = dict(model.named_modules())
    found = []
    for name, attention in modules.items():
        if attention in attention_modules(model):
            parent = modules[name.rpartition(".")[0]]
            found.append(_projections_of(attention, getattr(parent, "output", None), technique))
    return found


def _projections_of(attention: Any, beside: Any, technique: str) -> Projections:
    """`beside` is where BERT has the output's layer."""
    names = next((names for names in _INPUTS if all(hasattr(attention, name) for name in names)), ())
    inputs = tuple(getattr(attention, name) for name in names)
    outputs = [getattr(place, name) for place in (attention, beside) for name in _OUTPUTS if hasattr(place, name)]
    if not inputs or not outputs or any(type(layer) not in {nn.Linear, Conv1D} for layer in (*inputs, outputs[0])):
        raise InputError(
            f"{technique} makes plain linear layers around the heads smaller, and {type(attention).__name__} has others; "
            "list it before techniques that wrap or convert linear layers"
        )
    return Projections(attention, inputs, outputs[0], getattr(attention, "head_dim", None) or attention.attention_head_size)


def _weight(layer: Any) -> Tensor:
    """(out, in); GPT-2's Conv1D keeps it transposed."""
    weight: Tensor = layer.weight.detach()
    return weight.t() if isinstance(layer, Conv1D) else weight


def _set(layer: Any, weight: Tensor, bias: Tensor | None) -> None:
    """Put smaller weights (out, in) into a layer."""
    trains = layer.weight.requires_grad
    kept = weight.t() if isinstance(layer, Conv1D) else weight
    layer.weight = nn.Parameter(kept.contiguous(), requires_grad=trains)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=layer.bias.requires_grad)
    names = ("nf", "nx") if isinstance(layer, Conv1D) else ("out_features", "in_features")
    for name, size in zip(names, weight.shape, strict=True):
        setattr(layer, name, size)
