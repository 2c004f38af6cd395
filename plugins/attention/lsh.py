"""Attention within buckets: sort by bucket, cut into chunks, attend to the own chunk and the one before. This module needs torch.

Each query has an anchor: the place among the sorted keys where it stands itself, or would stand where queries and keys are hashed
apart. Its chunk of keys is the one that holds the anchor. Queries of one chunk of keys are handled together, in as many chunks of
queries as they fill; with shared queries and keys this is exactly one.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import dropout as drop

from .hashing import PADDING

_NEVER = -1e9  # added to a score that must not count; finite, so that a row of nothing else is no NaN
_LAST_RESORT = -1e3  # in place of a token's own score, which with shared queries and keys would drown all others


@dataclass(frozen=True)
class Rule:
    """Which keys of its two chunks a query may see."""

    chunk: int
    """Keys in a chunk."""
    strict: bool
    """Only the last `chunk` keys of the query's own bucket up to itself, so that later tokens change nothing; or both chunks whole."""
    causal: bool
    """No key that is later than the query. It does not keep later tokens from moving the borders of chunks: `strict` does."""
    shared: bool
    """Keys are the queries: a token attends to itself only where it has nothing else. If not, it always may."""


class _Layout(NamedTuple):
    """Queries in chunks (B, H, rounds, chunks, chunk), and for each of their chunks the two chunks of keys."""

    place: Tensor
    """(B, H, rounds, n): where in the flattened chunks each query is."""
    query: Tensor
    """(B, H, rounds, chunks, chunk): number of the query; a chunk that is not full is filled with query 0."""
    key: Tensor
    """(B, H, rounds, chunks, 2 · chunk): position of the key."""
    seen: Tensor
    """What of `key` each query may see, as far as its place tells: broadcasts to (B, H, rounds, chunks, chunk, 2 · chunk)."""


def attend(  # noqa: PLR0913 - the arguments of attention
    q: Tensor, k: Tensor, v: Tensor, query_buckets: Tensor, key_buckets: Tensor, rule: Rule, scaling: float, dropout: float = 0.0
) -> Tensor:
    """(B, H, n, d) from q (B, H, n, d), k and v (B, KV, m, d) and their buckets (B, heads, rounds, …).

    The n queries are the last of the m positions. A key that a query meets in several rounds counts as often.
    """
    before = k.shape[2] - q.shape[2]
    with torch.no_grad():
        layout = _layout(query_buckets, key_buckets, rule)
        bias = _bias(layout, before, rule, q.dtype)
    queries = _rows(q, layout.query)
    scores = scaling * (queries @ _rows(k, layout.key).mT) + bias
    values = _rows(v, layout.key)
    if not rule.shared:
        own = before + layout.query
        scores = torch.cat([scores, scaling * (queries * _rows(k, own)).sum(-1, keepdim=True)], dim=-1)
    total = scores.logsumexp(-1, keepdim=True)
    weights = drop((scores - total).exp(), dropout)
    output = weights[..., : values.shape[-2]] @ values
    if not rule.shared:
        output = output + weights[..., -1:] * _rows(v, own)
    return _over_rounds(output, total, layout.place)


def decode(
    q: Tensor, k: Tensor, v: Tensor, query_buckets: Tensor, key_buckets: Tensor, rule: Rule, scaling: float
) -> Tensor:
    """(B, H, 1, d): what the strict rule gives the last position alone, without sorting the others."""
    heads, keys = q.shape[1] // k.shape[1], k.shape[2]
    same = key_buckets.repeat_interleave(heads, dim=1) == query_buckets  # (B, H, rounds, m)
    recent = same.flip(-1).cumsum(-1).flip(-1) <= rule.chunk
    times = (same & recent).sum(2, keepdim=True).to(q.dtype)
    times[..., -1] = same.shape[2]  # itself, in every round
    bias = times.log().clamp(min=_NEVER)
    if rule.shared:
        bias[..., -1] += _LAST_RESORT
    grouped = q.unflatten(1, (-1, heads)).squeeze(3)  # (B, KV, G, d)
    scores = scaling * (grouped @ k.mT) + bias.view(*grouped.shape[:3], keys)
    return (scores.softmax(-1) @ v).flatten(1, 2).unsqueeze(2)


def _layout(query_buckets: Tensor, key_buckets: Tensor, rule: Rule) -> _Layout:
    (batch, heads, rounds, length), keys, chunk = query_buckets.shape, key_buckets.shape[-1], rule.chunk
    device = query_buckets.device
    positions = torch.arange(keys, device=device)
    # A bucket and a position in one number: sorted by bucket, and by position within it.
    sorted_keys = (key_buckets * keys + positions).sort(-1).values.repeat_interleave(heads // key_buckets.shape[1], dim=1)
    sorted_queries, order = (query_buckets * keys + positions[-length:]).sort(-1)
    anchor = torch.searchsorted(sorted_keys, sorted_queries, right=True) - 1
    block = anchor.clamp(min=0) // chunk

    blocks = -(-keys // chunk)
    filled = torch.zeros(batch, heads, rounds, blocks, dtype=torch.long, device=device).scatter_add_(-1, block, torch.ones_like(block))
    needed = -(-filled // chunk)
    first_chunk, first_query = needed.cumsum(-1) - needed, filled.cumsum(-1) - filled
    place = first_chunk.gather(-1, block) * chunk + torch.arange(length, device=device) - first_query.gather(-1, block)
    chunks = int(needed.sum(-1).max())

    def placed(numbers: Tensor) -> Tensor:
        return numbers.new_zeros(batch, heads, rounds, chunks * chunk).scatter_(-1, place, numbers).unflatten(-1, (chunks, chunk))

    window = torch.arange(2 * chunk, device=device)
    block_of_chunk = placed(block).amax(-1)
    rows = torch.arange(rounds, device=device).view(-1, 1) * blocks + block_of_chunk
    start = (rows - 1) * chunk
    padded = torch.nn.functional.pad(sorted_keys, (0, blocks * chunk - keys), value=PADDING * keys).flatten(2)
    index = (start.unsqueeze(-1) + window) % padded.shape[-1]
    codes = padded.gather(-1, index.flatten(2)).view_as(index)
    if rule.strict:
        first = torch.maximum(torch.searchsorted(sorted_keys, sorted_queries - sorted_queries % keys), anchor - chunk + 1)
        offset = ((block_of_chunk - 1) * chunk).unsqueeze(-1)
        low, high = placed(first) - offset, placed(anchor) - offset
        seen = (window >= low.unsqueeze(-1)) & (window <= high.unsqueeze(-1))
    else:
        once = window >= chunk if blocks == 1 else window >= 0  # a single chunk is its own neighbour
        seen = ((codes < PADDING * keys) & once).unsqueeze(-2)
    return _Layout(torch.empty_like(place).scatter_(-1, order, place), placed(order), codes % keys, seen)


def _bias(layout: _Layout, before: int, rule: Rule, dtype: torch.dtype) -> Tensor:
    """(B, H, rounds, chunks, chunk, 2 · chunk): what is added to the scores."""
    query, key = (layout.query + before).unsqueeze(-1), layout.key.unsqueeze(-2)
    seen, own = layout.seen, query == key
    if rule.causal and not rule.strict:
        seen = seen & (key <= query)
    bias = torch.zeros(own.shape, dtype=dtype, device=own.device).masked_fill_(~seen, _NEVER)
    return bias.masked_fill_(own, _LAST_RESORT if rule.shared else _NEVER)


def _rows(x: Tensor, positions: Tensor) -> Tensor:
    """x (B, heads, length, d) at positions (B, H, …), of which H / heads heads share one of x: (B, H, …, d)."""
    batch, heads, length, width = x.shape
    first = torch.arange(batch * heads, device=x.device).view(batch, heads).repeat_interleave(positions.shape[1] // heads, dim=1)
    index = positions + length * first.view(*first.shape, *[1] * (positions.ndim - 2))
    return x.reshape(-1, width).index_select(0, index.flatten()).view(*positions.shape, width)


def _over_rounds(output: Tensor, total: Tensor, place: Tensor) -> Tensor:
    """Back into the queries' order; the rounds' results weighted by the sums that their softmax divided by."""
    batch, heads, rounds, length = place.shape

    def ordered(x: Tensor) -> Tensor:
        rows = x.reshape(batch, heads * rounds, -1, x.shape[-1])
        return _rows(rows, place.flatten(1, 2)).unflatten(1, (heads, rounds))

    return (ordered(output) * ordered(total).softmax(dim=2)).sum(2)


def normalised(x: Tensor) -> Tensor:
    """Queries as keys: as published, only their direction counts."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
