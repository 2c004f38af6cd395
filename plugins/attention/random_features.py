"""Softmax attention as a product of positive random features (FAVOR+). This module needs torch.

exp(q·k) is the mean over Gaussian ω of f(q)·f(k) with f(x) = exp(ω·x - |x|²/2), so attention becomes f(Q) (f(K)ᵀ V): sums over
keys of (features, channels), which do not grow with the length. The mean over finitely many ω is the approximation.

Exponents are kept in range by factors that the division at the end cancels. A query's is its own highest logit. A key's is
kept apart as a weight relative to the highest *so far*: beside the highest of all, long keys that come early could underflow.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .form import Heads

_FLOOR = 1e-12  # of every feature: a query whose features meet those of no key attends evenly, and divides by no zero
_CHUNK = 64  # queries at a time: wide enough for matrix products, narrow beside the lengths this is for


class _Keys(NamedTuple):
    """What is made of keys and values, before any query."""

    features: Tensor
    """(B, KV, m, features), up to a factor for each key."""
    log_scale: Tensor
    """(B, KV, m, 1): the factor's logarithm."""
    values: Tensor
    """(B, KV, m, d + 1): a column of ones adds up the denominators."""

    def split(self, sizes: int | list[int]) -> "list[_Keys]":
        """Along the length; and not by slices, for each slice's gradient would be a tensor of the whole length."""
        return [_Keys(*parts) for parts in zip(*(tensor.split(sizes, dim=-2) for tensor in self), strict=True)]


class Sums(NamedTuple):
    """What the keys and values seen so far come to: all that a later query needs."""

    values: Tensor
    """(B, KV, features, d + 1): Σ f(k)·[v, 1]; the last channel is the denominator."""
    log_scale: Tensor
    """(B, KV, 1, 1): the logarithm of the factor that `values` were divided by."""

    @classmethod
    def none(cls, keys: Tensor, features: int, channels: int) -> "Sums":
        """Before the first key."""
        batch, heads = keys.shape[:2]
        lowest = torch.finfo(keys.dtype).min / 4  # finite, so that a difference of two is no NaN
        return cls(keys.new_zeros(batch, heads, features, channels + 1), keys.new_full((batch, heads, 1, 1), lowest))


def orthogonal_gaussian(features: int, width: int, generator: torch.Generator | None = None) -> Tensor:
    """(features, width): rows as long as Gaussian ones, at right angles to each other in blocks of `width` rows."""
    blocks = [torch.linalg.qr(torch.randn(width, width, generator=generator)).Q.T for _ in range(-(-features // width))]
    lengths: Tensor = torch.randn(features, width, generator=generator).norm(dim=1, keepdim=True)
    return torch.cat(blocks)[:features] * lengths


def bidirectional(heads: Heads, projection: Tensor) -> Tensor:
    """Attention over all keys: (B, H, n, d)."""
    queries, keys = _prepared(heads, projection)
    weights = (keys.log_scale - keys.log_scale.detach().amax(-2, keepdim=True)).exp()
    return _divided(queries @ ((keys.features * weights).mT @ keys.values).unsqueeze(2))


def causal(heads: Heads, projection: Tensor, before: Sums | None = None) -> tuple[Tensor, Sums]:
    """Attention of each query to the keys up to its own, and to those in `before`: (B, H, n, d). And what all keys come to."""
    sums = before or Sums.none(heads.k, *projection.shape)
    queries, keys = _prepared(heads, projection)
    earlier = heads.k.shape[2] - heads.q.shape[2]
    if earlier:
        first, keys = keys.split([earlier, heads.q.shape[2]])
        sums = _added(first, sums)
    if heads.q.shape[2] == 1:  # a decode step sees all keys, so it needs no order among them
        sums = _added(keys, sums)
        return _divided(queries @ sums.values.unsqueeze(2)), sums
    outputs = []
    for some_queries, some_keys in zip(queries.split(_CHUNK, dim=-2), keys.split(_CHUNK), strict=True):
        output, sums = _step(some_queries, some_keys, sums)
        outputs.append(output)
    return _divided(torch.cat(outputs, dim=3)), sums


def _prepared(heads: Heads, projection: Tensor) -> tuple[Tensor, _Keys]:
    """Features of the queries (B, KV, G, n, features), and the keys."""
    root = heads.scaling**0.5
    queries, _ = _features(root * heads.q.unflatten(1, (heads.k.shape[1], -1)), projection)
    key = root * heads.k
    keys, highest = _features(key, projection)
    log_scale = highest - key.square().sum(-1, keepdim=True) / 2
    if heads.padding is not None:
        log_scale = log_scale.masked_fill(~heads.padding[:, None, :, None], torch.finfo(log_scale.dtype).min / 2)
    ones = heads.v.new_ones(1).expand(*heads.v.shape[:-1], 1)
    return queries, _Keys(keys, log_scale, torch.cat([heads.v, ones], dim=-1))


def _step(queries: Tensor, keys: _Keys, before: Sums) -> tuple[Tensor, Sums]:
    """One chunk: its queries (B, KV, G, c, features) see the keys up to their own, and all of those before."""
    highest = torch.maximum(keys.log_scale.detach().cummax(-2).values, before.log_scale)  # so far, for each query
    weights = (keys.log_scale.mT - highest).clamp(max=0).exp().tril().unsqueeze(2)  # only a later key's could be above 0
    inside = ((queries @ keys.features.mT.unsqueeze(2)) * weights) @ keys.values.unsqueeze(2)
    scale = (before.log_scale - highest).exp().unsqueeze(2)
    return torch.addcmul(inside, queries @ before.values.unsqueeze(2), scale), _added(keys, before)


def _added(keys: _Keys, before: Sums) -> Sums:
    """The sums, with these keys among them."""
    highest = torch.maximum(keys.log_scale.detach().amax(-2, keepdim=True), before.log_scale)
    added = (keys.features * (keys.log_scale - highest).exp()).mT @ keys.values
    return Sums(torch.addcmul(added, before.values, (before.log_scale - highest).exp()), highest)


def _features(x: Tensor, projection: Tensor) -> tuple[Tensor, Tensor]:
    """exp(ω·x) over its highest, and that one's logarithm: (..., n, features) and (..., n, 1)."""
    logits = x @ projection.T
    highest = logits.detach().amax(-1, keepdim=True)
    return (logits - highest).exp() + _FLOOR, highest


def _divided(sums: Tensor) -> Tensor:
    """Numerators by the denominator beside them, as (B, H, n, d); a query that sees no key gets 0."""
    return (sums[..., :-1] / sums[..., -1:].clamp(min=torch.finfo(sums.dtype).tiny)).flatten(1, 2)
