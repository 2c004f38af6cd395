"""LSH attention in a model: each layer's rotations, and the hashes it decodes with. This module needs torch."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .cache import PastLayer, attention_modules, past_of
from .chunks import Hashes, Rule
from .form import Form, Heads, head_width
from .hashing import buckets_of, rotations
from .lsh import attend, decode, normalised

_BUFFER = "rotations"


class Buckets(Form):
    """Attention within buckets; the rotations that hash are a buffer of the layer."""

    def __init__(self, rule: Rule, buckets: int) -> None:
        self.rule, self.buckets = rule, buckets

    def __call__(self, module: nn.Module, heads: Heads) -> Tensor:
        """Linear in the number of tokens, but for sorting them."""
        kind, heads = heads.v.dtype, heads.precise()
        if self.rule.shared:
            heads = replace(heads, k=_queries_as_keys(heads.q, heads.k))
        rotation = module.get_buffer(_BUFFER)
        queries, keys = (buckets_of(x, rotation, self.buckets, _last(heads.padding, x)) for x in (heads.q, heads.k))
        past: Any = past_of(module)
        if past is not None:
            k, v, keys = past.keep(heads.k, heads.v, keys)
            heads = replace(heads, k=k, v=v)
        one = self.rule.strict and heads.q.shape[2] == 1
        with torch.autocast(heads.q.device.type, enabled=False):
            output = (decode if one else attend)(heads, Hashes(queries, keys), self.rule)
        return output.to(kind).transpose(1, 2)

    def past_layer(self) -> PastLayer:
        """Keys and values as ever, and the keys' hashes."""
        return HashedPast()


class HashedPast(PastLayer):
    """`update` returns the new tokens; the form adds them with their hashes, and is given all."""

    keys: Tensor | None = None
    values: Tensor | None = None
    buckets: Tensor | None = None
    _new: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """What the form has not yet seen."""
        self.lazy_initialization(key_states, value_states)
        new = key_states, value_states
        self._new = _joined(self._new, new) if self._new else new
        self.seen += key_states.shape[2]
        return self._new

    def keep(self, keys: Tensor, values: Tensor, buckets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All keys and values so far, and the keys' buckets, with these at their end."""
        if self.keys is not None and self.values is not None and self.buckets is not None:
            keys, values = _joined((self.keys, self.values), (keys, values))
            buckets = torch.cat([self.buckets, buckets], dim=-1)
        self._new, self.keys, self.values, self.buckets = None, keys.detach(), values.detach(), buckets
        return keys, values, buckets

    def reset(self) -> None:
        """As new."""
        super().reset()
        self.keys = self.values = self.buckets = self._new = None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Beam search: rows move."""
        kept = (x if x is None else x.index_select(0, beam_idx) for x in (self.keys, self.values, self.buckets))
        self.keys, self.values, self.buckets = kept


def draw(model: nn.Module, rounds: int, buckets: int) -> None:
    """Give each layer rotations of its own."""
    device = next(model.parameters()).device
    for module in attention_modules(model):
        module.register_buffer(_BUFFER, rotations(head_width(module), rounds, buckets).to(device))


def _queries_as_keys(q: Tensor, k: Tensor) -> Tensor:
    """Keys of tokens that have no query here, such as a prefix, stay their own."""
    earlier = k.shape[2] - q.shape[2]
    return normalised(torch.cat([k[:, :, :earlier], q], dim=2) if earlier else q)


def _last(padding: Tensor | None, x: Tensor) -> Tensor | None:
    """The padding of these tokens, which are the last of all."""
    return None if padding is None else padding[:, -x.shape[2] :]


def _joined(old: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return torch.cat([old[0], new[0]], dim=2), torch.cat([old[1], new[1]], dim=2)
