"""A linear layer as two, and which layers are worth it."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from effbench.plugin.layers import linear_layers


class Factors(nn.Module):
    """B·A in place of a weight, from its largest singular values, their square roots on either side."""

    def __init__(self, layer: nn.Module, rank: int) -> None:
        super().__init__()
        weight = _weight(layer)
        left, values, right = torch.linalg.svd(weight.float(), full_matrices=False)
        roots = values[:rank].sqrt()
        self.down = _linear((roots[:, None] * right[:rank]).to(weight.dtype))
        self.up = _linear((left[:, :rank] * roots).to(weight.dtype))
        bias: Any = layer.bias
        self.up.bias = bias  # frozen, as it was; None where there is none

    @property
    def weight(self) -> Tensor:
        """T5 looks at its dtype."""
        return self.up.weight

    def forward(self, x: Tensor) -> Tensor:
        """Through the narrow middle."""
        y: Tensor = self.up(self.down(x))
        return y


def factorable(model: nn.Module, rank: int) -> list[str]:
    """Names of the linear layers, without the head, that get smaller at this rank."""
    names = []
    for name, layer in linear_layers(model).items():
        rows, columns = layer.weight.shape
        if rank * (rows + columns) < rows * columns:
            names.append(name)
    return names


def _weight(layer: Any) -> Tensor:
    """(out, in); GPT-2's Conv1D keeps it transposed."""
    weight: Tensor = layer.weight.detach()
    return weight.t() if isinstance(layer, Conv1D) else weight


def _linear(weight: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight.contiguous())
    return linear
