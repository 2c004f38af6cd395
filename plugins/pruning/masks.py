"""Scores → masks → zeros. This module needs torch."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from effbench.plugin import InputError
from effbench.plugin.layers import linear_layers

from .masking import Scope

_KERNEL_ROWS, _KERNEL_COLUMNS = 32, 64  # sizes that both of the 2:4 back ends take, for 16-bit weights


def float_layers(model: nn.Module, technique: str) -> dict[str, Any]:
    """The linear layers to prune."""
    layers = linear_layers(model)
    if not layers:  # a row of the board that is named after this and measures the untouched model would be a lie
        raise InputError(f"{technique}: no float linear layer to prune; another technique may have converted them")
    return layers


def rows(layer: Any, weight: Tensor | None = None) -> Tensor:
    """A view of the layer's weight, or of a tensor of its shape, as (outputs, inputs)."""
    weight = layer.weight.detach() if weight is None else weight
    return weight.t() if isinstance(layer, Conv1D) else weight


def masks_of(scores: Mapping[str, Tensor], sparsity: float, scope: Scope) -> dict[str, Tensor]:
    """Drop the share `sparsity` with the lowest scores: of all weights, of each layer's, or of each output's."""
    if scope == "global":
        kept = _all_but_lowest(torch.cat([score.flatten() for score in scores.values()]), sparsity)
        parts = kept.split([score.numel() for score in scores.values()])
        return {name: part.view(score.shape) for part, (name, score) in zip(parts, scores.items(), strict=True)}
    if scope == "layer":
        return {name: _all_but_lowest(score.flatten(), sparsity).view(score.shape) for name, score in scores.items()}
    return {name: _all_but_lowest(score, sparsity) for name, score in scores.items()}


def two_of_four(score: Tensor) -> Tensor:
    """Of every four neighbouring inputs of an output, keep the two with the highest scores."""
    return _all_but_lowest(score.unflatten(-1, (-1, 4)), 0.5).flatten(-2)


def _all_but_lowest(score: Tensor, share: float) -> Tensor:
    """Along the last dimension; how many go is the same in each row, and exact where scores tie."""
    lowest = score.topk(round(share * score.shape[-1]), largest=False).indices
    return torch.ones_like(score, dtype=torch.bool).scatter_(-1, lowest, False)


def zero(layers: Mapping[str, Any], masks: Mapping[str, Tensor]) -> None:
    """Zero the weights whose mask is False."""
    for name, mask in masks.items():
        rows(layers[name]).masked_fill_(~mask, 0.0)


def keep_zeros(model: nn.Module) -> Callable[[], None]:
    """What puts today's zeros of trained linear weights back."""
    trained = [layer.weight for layer in linear_layers(model).values() if layer.weight.requires_grad]
    zeros = [(weight, weight == 0) for weight in trained]

    @torch.no_grad()
    def restore() -> None:
        for weight, zero in zeros:
            weight.masked_fill_(zero, 0.0)

    return restore


def pack_two_of_four(model: nn.Module) -> nn.Module:
    """CUDA: half-size weights for PyTorch's 2:4 kernels, of the layers that have the pattern and a size the kernels take."""
    from torch.sparse import to_sparse_semi_structured

    for layer in linear_layers(model, (nn.Linear,)).values():
        weight = layer.weight.detach()
        sizes = weight.shape[0] % _KERNEL_ROWS == 0 and weight.shape[1] % _KERNEL_COLUMNS == 0
        if sizes and weight.dtype in {torch.float16, torch.bfloat16} and _has_pattern(weight):
            layer.weight = nn.Parameter(to_sparse_semi_structured(weight), requires_grad=False)
    return model


def _has_pattern(weight: Tensor) -> bool:
    return bool(((weight.unflatten(-1, (-1, 4)) != 0).sum(-1) <= 2).all())
