"""What an attention form is, and what it is given. This module needs torch."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .cache import PastLayer


@dataclass(frozen=True)
class Heads:
    """What one layer attends with; the n queries are the last of the m positions.

    So n is m in training, 1 in a decode step, and anything between when a prompt comes in parts. KV divides H: query heads
    h · H/KV to (h + 1) · H/KV share the keys and values of head h.
    """

    q: Tensor
    """(B, H, n, d)"""
    k: Tensor
    """(B, KV, m, d)"""
    v: Tensor
    """(B, KV, m, d)"""
    padding: Tensor | None
    """(B, m), True where a token is; None where all are. What a padded query gets does not matter, but it must be finite."""
    scaling: float
    """Of the scores, before softmax."""
    dropout: float
    """Of the weights after softmax; 0 unless training."""
    causal: bool
    """Whether a query may see only keys up to its own position."""

    def precise(self) -> "Heads":
        """In float32 at least, for what sums over many tokens."""
        kind = torch.promote_types(self.q.dtype, torch.float32)
        return replace(self, q=self.q.to(kind), k=self.k.to(kind), v=self.v.to(kind))

    def softmax(self, mask: Tensor | None = None) -> Tensor:
        """PyTorch's exact attention, of pairs where the mask is True → (B, n, H, d). Ignores `padding` and `causal`."""
        grouped = self.q.shape[1] != self.k.shape[1]
        attended = F.scaled_dot_product_attention(
            self.q, self.k, self.v, mask, self.dropout, scale=self.scaling, enable_gqa=grouped
        )
        return attended.transpose(1, 2)


class Form(ABC):
    """How queries find keys, in place of softmax over all of them. One object serves all layers of one model.

    It never changes. What a layer learns or draws for itself (projections, random features) lives on its attention module, as a
    parameter or a buffer, so that it is trained, moved and saved with the model.
    """

    @abstractmethod
    def __call__(self, module: nn.Module, heads: Heads) -> Tensor:
        """The attention module and what it attends with → (B, n, H, d).

        While the decoder runs with a cache of the form's own, `past_of(module)` is this layer's part of it, and `heads.k` and
        `heads.v` are what its `update` returned.
        """

    def past_layer(self) -> PastLayer | None:
        """A new cache layer of the form's own for decoding; None leaves transformers' growing one."""
        return None


def head_width(module: Any) -> int:
    """Channels of one head of an attention module, under the names that architectures give it."""
    width: int = getattr(module, "head_dim", None) or module.attention_head_size
    return width
