"""LSH attention in a model: each layer's rotations, and the hashes it decodes with. This module needs torch."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .cache import PastLayer, attention_modules, past_of
from .form import Form, Heads, head_shape
from .hashing import buckets_of, rotations
from .lsh import Rule, attend, decode, normalised

_BUFFER = "rotations"


class Buckets(Form):
    """Attention within buckets; the rotations that hash are a buffer of the layer."""

    def __init__(self, rule: Rule, buckets: int) -> None:
        self.rule, self.buckets = rule, buckets

    def __call__(self, module: nn.Module, heads: Heads) -> Tensor:
        """Linear in the number of tokens, but for sorting them."""
        past: Any = past_of(module)
        q, k, v, padding = heads.q, heads.k, heads.v, heads.padding
        rotation = module.get_buffer(_BUFFER)
        if self.rule.shared:
            k = _queries_as_keys(q, k)
        query_buckets = buckets_of(q, rotation, self.buckets, _last(padding, q))
        key_buckets = query_buckets if self.rule.shared and k.shape == q.shape else self._hashed(k, rotation, padding)
        if past is not None:
            k, v, key_buckets = past.keep(k, v, key_buckets)
        if self.rule.strict and q.shape[2] == 1:
            output = decode(q, k, v, query_buckets, key_buckets, self.rule, heads.scaling)
        else:
            rule = replace(self.rule, causal=heads.causal)
            output = attend(q, k, v, query_buckets, key_buckets, rule, heads.scaling, heads.dropout)
        return output.transpose(1, 2)

    def _hashed(self, k: Tensor, rotation: Tensor, padding: Tensor | None) -> Tensor:
        return buckets_of(k, rotation, self.buckets, _last(padding, k))

    def past_layer(self) -> PastLayer:
        """Keys and values as ever, and the keys' hashes."""
        return HashedPast()


class HashedPast(PastLayer):
    """`update` returns the new tokens; the form adds them with their hashes, and is given all."""

    def __init__(self) -> None:
        super().__init__()
        self.buckets: Tensor | None = None
        self._new: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """What the form has not yet seen."""
        self.lazy_initialization(key_states, value_states)
        new = key_states, value_states
        self._new = _joined(self._new, new) if self._new else new
        self.seen += key_states.shape[2]
        return self._new

    def keep(self, keys: Tensor, values: Tensor, buckets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All keys and values so far, and the keys' buckets, with these at their end."""
        self._new = None
        if self.buckets is None:
            self.keys, self.values, self.buckets = keys.detach(), values.detach(), buckets
        else:
            self.keys, self.values = _joined((self.keys, self.values), (keys.detach(), values.detach()))
            self.buckets = torch.cat([self.buckets, buckets], dim=-1)
        return self.keys, self.values, self.buckets

    def reset(self) -> None:
        """As new."""
        super().reset()
        self.keys = self.values = self.buckets = self._new = None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Beam search: rows move."""
        if self.buckets is not None:
            self.keys, self.values, self.buckets = (x.index_select(0, beam_idx) for x in (self.keys, self.values, self.buckets))


def draw(model: nn.Module, rounds: int, buckets: int) -> None:
    """Give each layer rotations of its own."""
    device = next(model.parameters()).device
    for module in attention_modules(model):
        shape = head_shape(module)
        module.register_buffer(_BUFFER, rotations(shape.key_heads, shape.width, rounds, buckets).to(device))


def _queries_as_keys(q: Tensor, k: Tensor) -> Tensor:
    """Keys of tokens that have no query here, such as a prefix, stay their own."""
    earlier = k.shape[2] - q.shape[2]
    return normalised(torch.cat([k[:, :, :earlier], q], dim=2) if earlier else q)


def _last(padding: Tensor | None, x: Tensor) -> Tensor | None:
    """The padding of these tokens, which are the last of all."""
    return None if padding is None else padding[:, -x.shape[2] :]


def _joined(old: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return torch.cat([old[0], new[0]], dim=2), torch.cat([old[1], new[1]], dim=2)
