"""Keys and values projected along the length to a fixed number of slots. This module needs torch."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from effbench.plugin import InputError

from .cache import attention_modules
from .form import Form, Heads
from .interface import transformers_model

MODULE = "length_projection"


class LengthProjection(nn.Module):
    """One layer's projections from `length` tokens to `slots`, for all of its heads."""

    def __init__(self, length: int, slots: int, *, shared: bool) -> None:
        super().__init__()
        self.keys = nn.Parameter(_means(length, slots))
        self.values = self.keys if shared else nn.Parameter(_means(length, slots))

    def forward(self, key: Tensor, value: Tensor, padding: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, KV, m, d) → (B, KV, slots, d); padding counts as zeros."""
        if padding is not None:
            present = padding.bool()[:, None, :, None]
            key, value = key.masked_fill(~present, 0), value.masked_fill(~present, 0)
        return self._projected(self.keys, key), self._projected(self.values, value)

    def _projected(self, weight: Tensor, x: Tensor) -> Tensor:
        tokens, most = x.shape[2], weight.shape[1]
        if tokens > most:
            raise InputError(f"linformer projects at most {most} tokens (the cell's seq_len), and was given {tokens}")
        return weight[:, :tokens] @ x


def _means(length: int, slots: int) -> Tensor:
    """(slots, length): each slot starts as the mean of an equal share of the tokens. As many slots as tokens: the identity."""
    edges = torch.linspace(0, length, slots + 1, dtype=torch.float64)
    tokens = torch.arange(length, dtype=torch.float64)
    overlap = torch.minimum(tokens + 1, edges[1:, None]) - torch.maximum(tokens, edges[:-1, None])
    share = overlap.clamp(min=0)
    return (share / share.sum(dim=1, keepdim=True)).float()


class Slots(Form):
    """Exact attention to the slots; the projections are a module of the layer's."""

    def __call__(self, module: nn.Module, heads: Heads) -> Tensor:
        """Linear in the number of tokens."""
        k, v = module.get_submodule(MODULE)(heads.k, heads.v, heads.padding)
        return replace(heads, k=k, v=v).softmax()


def give_projections(model: nn.Module, length: int, slots: int, *, shared: bool) -> None:
    """Each layer gets its own, of the model's type."""
    inner = transformers_model(model)
    for module in attention_modules(model):
        module.add_module(MODULE, LengthProjection(length, slots, shared=shared).to(inner.device, inner.dtype))
