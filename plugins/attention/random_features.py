"""Softmax attention as a product of positive random features (FAVOR+). This module needs torch.

exp(q·k) is the mean over Gaussian ω of f(q)·f(k) with f(x) = exp(ω·x - |x|²/2), so attention becomes f(Q) (f(K)ᵀ V): sums over
keys of (features, channels), which do not grow with the length. The mean over finitely many ω is the approximation.

Logarithms are kept in range by factors that the division at the end cancels. A query's is its own highest logit. A key's is kept
apart as a weight relative to the highest *so far*: a maximum over all keys would let a later, large key underflow earlier ones.
"""

from typing import NamedTuple

import torch
from torch import Tensor

_FLOOR = 1e-12  # of every feature: a query whose features meet those of no key attends evenly, and divides by no zero
_CHUNK = 64  # queries at a time: wide enough for matrix products, narrow beside the lengths this is for


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
    lengths = torch.randn(features, width, generator=generator).norm(dim=1, keepdim=True)
    return torch.cat(blocks)[:features] * lengths


def bidirectional(query: Tensor, key: Tensor, value: Tensor, projection: Tensor, padding: Tensor | None) -> Tensor:
    """Attention over all keys: (B, H, n, d) from q (B, H, n, d) and k, v (B, KV, m, d), both of q and k scaled already."""
    queries, _ = _features(_grouped(query, key), projection)
    keys, log_scale = _features(key, projection)
    log_scale = _without_padding(log_scale, padding)
    weights = (log_scale - log_scale.detach().amax(-2, keepdim=True)).exp()
    return _divided(queries @ ((keys * weights).mT @ _with_ones(value)).unsqueeze(2)).flatten(1, 2)


def causal(
    query: Tensor, key: Tensor, value: Tensor, projection: Tensor, padding: Tensor | None, before: Sums | None = None
) -> tuple[Tensor, Sums]:
    """Attention of each query to the keys up to its own, and to those in `before`; and what all of them come to.

    The queries are the last of the positions: keys may come before them.
    """
    sums = before or Sums.none(key, *projection.shape)
    queries, _ = _features(_grouped(query, key), projection)
    keys, log_scale = _features(key, projection)
    log_scale, values = _without_padding(log_scale, padding), _with_ones(value)
    length, earlier = query.shape[2], key.shape[2] - query.shape[2]
    if earlier:
        first, rest = zip(*(x.split([earlier, length], dim=-2) for x in (keys, log_scale, values)), strict=True)
        sums, (keys, log_scale, values) = _added(*first, sums), rest
    outputs = []
    # `split` and not slices: the gradient of each slice would be a tensor of the whole length
    parts = (tensor.split(_CHUNK, dim=-2) for tensor in (queries, keys, log_scale, values))
    for part in zip(*parts, strict=True):
        output, sums = _step(*part, sums)
        outputs.append(output)
    return _divided(torch.cat(outputs, dim=3)).flatten(1, 2), sums


def _step(queries: Tensor, keys: Tensor, log_scale: Tensor, values: Tensor, before: Sums) -> tuple[Tensor, Sums]:
    """One chunk: its queries (B, KV, G, c, features) see the keys up to their own, and all of those before."""
    highest = torch.maximum(log_scale.detach().cummax(-2).values, before.log_scale)  # so far, for each query
    length = queries.shape[-2]
    later = torch.ones(length, length, dtype=torch.bool, device=queries.device).triu(1)
    weights = (log_scale.mT - highest).masked_fill(later, -torch.inf).exp().unsqueeze(2)
    inside = ((queries @ keys.mT.unsqueeze(2)) * weights) @ values.unsqueeze(2)
    output = torch.addcmul(inside, queries @ before.values.unsqueeze(2), (before.log_scale - highest).exp().unsqueeze(2))
    return output, _added(keys, log_scale, values, before)


def _added(keys: Tensor, log_scale: Tensor, values: Tensor, before: Sums) -> Sums:
    highest = torch.maximum(log_scale.detach().amax(-2, keepdim=True), before.log_scale)
    added = (keys * (log_scale - highest).exp()).mT @ values
    return Sums(torch.addcmul(added, before.values, (before.log_scale - highest).exp()), highest)


def _features(x: Tensor, projection: Tensor) -> tuple[Tensor, Tensor]:
    """Features up to a factor, and the factor's logarithm: (..., n, features) and (..., n, 1)."""
    logits = x @ projection.T
    highest = logits.detach().amax(-1, keepdim=True)
    return (logits - highest).exp() + _FLOOR, highest - x.square().sum(-1, keepdim=True) / 2


def _grouped(query: Tensor, key: Tensor) -> Tensor:
    """(B, KV, heads that share a key's head, n, d)."""
    return query.unflatten(1, (key.shape[1], -1))


def _with_ones(value: Tensor) -> Tensor:
    return torch.cat([value, value.new_ones(1).expand(*value.shape[:-1], 1)], dim=-1)


def _without_padding(log_scale: Tensor, padding: Tensor | None) -> Tensor:
    if padding is None:
        return log_scale
    return log_scale.masked_fill(~padding.bool()[:, None, :, None], torch.finfo(log_scale.dtype).min / 2)


def _divided(sums: Tensor) -> Tensor:
    """Numerators by the denominator beside them; a query that sees no key gets 0."""
    return sums[..., :-1] / sums[..., -1:].clamp(min=torch.finfo(sums.dtype).tiny)
