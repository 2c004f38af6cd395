"""Who may meet whom in LSH attention: tokens sorted by bucket and cut into chunks. Integers alone. This module needs torch.

Each query has an anchor: the place among the sorted keys where it stands itself or, where queries and keys are hashed apart,
would stand. Its keys are those of the chunk that holds the anchor and of the chunk before. Queries with the same chunk of keys
are handled together, in as many chunks of queries as they fill: exactly one where keys are the queries.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from .hashing import PADDING


@dataclass(frozen=True)
class Rule:
    """Which keys of its two chunks a query may see."""

    chunk: int
    """Keys in a chunk."""
    strict: bool
    """Only the last `chunk` keys of its own bucket up to itself, so that later tokens change nothing; if not, all of both."""
    causal: bool
    """No key later than the query. Later tokens still move the borders of chunks, unless `strict`."""
    shared: bool
    """Keys are the queries: a token attends to itself only where it has nothing else. If not, it always may."""


class Hashes(NamedTuple):
    """The buckets of queries (B, H, rounds, n) and keys (B, KV, rounds, m); the n queries are the last of the m tokens."""

    queries: Tensor
    keys: Tensor


class Sorted(NamedTuple):
    """Keys in the order of their buckets, each round filled up to whole chunks."""

    position: Tensor
    """(B, KV, rounds, chunks, chunk): -1 where no token is."""
    place: Tensor
    """(B, KV, rounds, m): the inverse; within one head's flattened rounds."""


class Chunks(NamedTuple):
    """Chunks of queries, all heads and rounds in a row (N)."""

    row: Tensor
    """(N, chunk): which of all queries (B · H · n); the first where the chunk is not full."""
    own: Tensor
    """(N, chunk): which of all keys (B · KV · m) is the query's own."""
    position: Tensor
    """(N, chunk): of the query, among the m tokens; -1 where the chunk is not full."""
    keys: Tensor
    """(N, 2): which of all chunks of sorted keys."""
    low: Tensor
    """(N, chunk): the first key that the strict rule shows, counted from the start of the two chunks."""
    high: Tensor
    """(N, chunk): the last."""


class Plan(NamedTuple):
    """All that is known before queries meet keys."""

    keys: Sorted
    chunks: Chunks
    place: Tensor
    """(B, H, rounds, n): where each query is, within one head's flattened chunks of all rounds."""


@torch.no_grad()
def plan(hashes: Hashes, rule: Rule) -> Plan:
    """Sort and cut."""
    tokens, length = hashes.keys.shape[-1], hashes.queries.shape[-1]
    positions = torch.arange(tokens, device=hashes.keys.device)
    # A bucket and a position in one number: sorted by bucket, and by position within it.
    key_codes, key_order = (hashes.keys * tokens + positions).sort(-1)
    query_codes, query_order = (hashes.queries * tokens + positions[tokens - length :]).sort(-1)
    group = query_codes.shape[1] // key_codes.shape[1]
    codes = key_codes.repeat_interleave(group, dim=1)
    anchor = torch.searchsorted(codes, query_codes, right=True) - 1
    first = torch.searchsorted(codes, query_codes - query_codes % tokens)  # of the query's bucket
    low = torch.maximum(first, anchor - rule.chunk + 1)
    chunks, place = _filled(_Anchors(query_order, anchor, low), rule.chunk, tokens, group)
    return Plan(_sorted(key_codes, key_order, rule.chunk), chunks, torch.empty_like(place).scatter_(-1, query_order, place))


def allowed(chunks: Chunks, keys: Sorted, rule: Rule) -> Tensor:
    """(N, chunk, 2 · chunk): which of the keys in its two chunks a query may see. Its own is never among them."""
    positions = keys.position.flatten(0, 3).index_select(0, chunks.keys.flatten()).view(len(chunks.keys), 1, -1).int()
    query, low, high = (x.unsqueeze(-1).int() for x in (chunks.position, chunks.low, chunks.high))  # halves what is compared
    window = torch.arange(2 * rule.chunk, device=query.device, dtype=query.dtype)
    if rule.strict:
        return (window >= low).logical_and_(window <= high).logical_and_(positions != query)
    seen = (positions >= 0) & (positions != query)
    if keys.position.shape[3] == 1:
        seen &= window >= rule.chunk  # a round's only chunk is not its own neighbour as well
    return seen & (positions <= query) if rule.causal else seen


def _sorted(codes: Tensor, order: Tensor, chunk: int) -> Sorted:
    tokens = codes.shape[-1]
    missing = -tokens % chunk
    position = pad(order.masked_fill(codes >= PADDING * tokens, -1), (0, missing), value=-1)
    starts = torch.arange(codes.shape[2], device=codes.device).view(-1, 1) * (tokens + missing)
    ranks = torch.arange(tokens, device=codes.device) + starts
    place = torch.empty_like(order).scatter_(-1, order, ranks.expand_as(order))
    return Sorted(position.unflatten(-1, (-1, chunk)), place)


class _Anchors(NamedTuple):
    """Of queries in the order of their buckets (B, H, rounds, n)."""

    order: Tensor
    """Which query it is."""
    anchor: Tensor
    low: Tensor
    """The first sorted key that the strict rule shows it."""


def _filled(sorted_queries: _Anchors, chunk: int, tokens: int, group: int) -> tuple[Chunks, Tensor]:
    """Sorted queries put into chunks of queries, and where each of them came to be."""
    order, anchor, low = sorted_queries
    (batch, heads, rounds, length), device = order.shape, order.device
    per_round = -(-tokens // chunk)
    block = anchor.clamp(min=0) // chunk
    queries = torch.zeros(batch, heads, rounds, per_round, dtype=torch.long, device=device)
    queries.scatter_add_(-1, block, torch.ones_like(block))
    needed = -(-queries // chunk)
    count = int(needed.sum(-1).max())
    first_chunk, first_query = needed.cumsum(-1) - needed, queries.cumsum(-1) - queries
    slot = first_chunk.gather(-1, block) * chunk + torch.arange(length, device=device) - first_query.gather(-1, block)

    def placed(numbers: Tensor, empty: int) -> Tensor:
        filled = numbers.new_full((batch, heads, rounds, count * chunk), empty)
        return filled.scatter_(-1, slot, numbers).view(batch, heads, rounds, count, chunk)

    head = torch.arange(batch * heads, device=device).view(batch, heads, 1)
    round_ = torch.arange(rounds, device=device)
    own_block = placed(block, 0).amax(-1)
    # The first chunk of a round has the last one of the round before as its neighbour, as published; `strict` hides it.
    in_head = round_.view(-1, 1) * per_round + own_block
    pair = torch.stack([(in_head - 1) % (rounds * per_round), in_head], dim=-1)
    keys = pair + (head // group * rounds * per_round)[..., None, None]
    start = ((own_block - 1) * chunk).unsqueeze(-1)
    chunks = Chunks(
        row=placed(order, 0) + head[..., None, None] * length,
        own=placed(order + tokens - length, 0) + (head // group)[..., None, None] * tokens,
        position=placed(order + tokens - length, -1),
        keys=keys,
        low=placed(low, 0) - start,
        high=placed(anchor, 0) - start,
    )
    return Chunks(*(tensor.flatten(0, 3) for tensor in chunks)), slot + round_.view(-1, 1) * count * chunk
