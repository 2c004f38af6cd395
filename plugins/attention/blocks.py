"""Attention from blocks of queries to a few blocks of keys each: O(n · blocks · size). This module needs torch."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from . import flex
from .form import Heads
from .gathered import AT_ONCE, Gathering, attend


def query_blocks(heads: Heads, size: int) -> range:
    """The blocks that the queries lie in, the first and the last one perhaps in part. Blocks are counted from the first key."""
    n, m = heads.q.shape[2], heads.k.shape[2]
    return range((m - n) // size, -(-m // size))


def block_attention(heads: Heads, chosen: Tensor, size: int) -> Tensor:
    """Exact attention of each query block to the key blocks chosen for it → (B, n, H, d).

    `chosen` is (B or 1, KV or 1, query blocks, any): numbers of key blocks, each at most once in a row, or -1 for none. The
    query block's own number stands last, and if the heads are causal those before it are smaller.
    """
    n, m = heads.q.shape[2], heads.k.shape[2]
    if n == 1 and heads.causal:
        return _step(heads, chosen[:, :, 0], size)
    if flex.applies_to_blocks(heads, size):
        return flex.flex_blocks(heads, chosen, size)
    blocks = query_blocks(heads, size)
    before, after = m - n - blocks.start * size, blocks.stop * size - m
    batch, groups = heads.k.shape[:2]
    q = F.pad(heads.q, (0, 0, before, after)).unflatten(2, (len(blocks), size)).unflatten(1, (groups, -1))
    q = q.transpose(2, 3).flatten(0, 2)  # (B · KV · query blocks, H / KV, size, d)
    k, v = (F.pad(x, (0, 0, 0, after)).unflatten(2, (-1, size)).flatten(0, 2) for x in (heads.k, heads.v))
    padding = torch.ones(1, m, dtype=torch.bool, device=q.device) if heads.padding is None else heads.padding
    tokens = F.pad(padding, (0, after)).unflatten(1, (-1, size)).expand(batch, -1, -1).repeat_interleave(groups, 0)
    first = torch.arange(0, len(k), blocks.stop, device=q.device).view(batch, groups, 1, 1)
    numbers = (chosen.clamp(min=0) + first).flatten(0, 2)
    there = (chosen >= 0).expand(batch, groups, -1, -1).flatten(0, 2)
    choice = _Choice(heads, numbers, there, tokens.flatten(0, 1))
    out = attend(q, k, v, choice, heads).unflatten(0, (batch, groups, -1))  # (B, KV, query blocks, size, H / KV, d)
    attended: Tensor = out.permute(0, 2, 3, 1, 4, 5).flatten(3, 4).flatten(1, 2)[:, before : before + n]
    return attended


def _step(heads: Heads, chosen: Tensor, size: int) -> Tensor:
    """One query behind all keys: only those of its blocks are touched."""
    batch, groups, m, _ = heads.k.shape
    within = torch.arange(size, device=chosen.device)
    positions = (chosen[..., None] * size + within).flatten(2).expand(batch, groups, -1)
    seen = (positions >= 0) & (positions < m)  # the own block goes on behind the query
    positions = positions.clamp(0, m - 1)
    if heads.padding is not None:
        seen = seen & heads.padding[:, None].expand(-1, groups, -1).gather(2, positions)
    k, v = (x.gather(2, positions[..., None].expand(-1, -1, -1, x.shape[3])) for x in (heads.k, heads.v))
    mask = seen.repeat_interleave(heads.q.shape[1] // groups, dim=1)[:, :, None]
    return replace(heads, k=k, v=v).softmax(mask)


@dataclass(frozen=True)
class _Choice(Gathering):
    """For each block of queries (all sequences' and key heads' in one row), which blocks of keys it is given."""

    heads: Heads
    numbers: Tensor
    """(query blocks, any)"""
    there: Tensor
    """(query blocks, any), False where the number means none."""
    tokens: Tensor
    """(key blocks, size), False where padding is."""

    def parts(self, k: Tensor) -> Iterable[slice]:
        together = max(1, AT_ONCE[k.device.type] // (self.numbers.shape[1] * k[0].numel()))
        return (slice(at, at + together) for at in range(0, len(self.numbers), together))

    def gather(self, x: Tensor, part: slice) -> Tensor:
        """Blocks (all, size, d) → (query blocks, 1, any · size, d)."""
        return x.index_select(0, self.numbers[part].flatten()).view(-1, 1, self.numbers.shape[1] * x.shape[1], x.shape[2])

    def scatter(self, total: Tensor, part: slice, gathered: Tensor) -> None:
        total.index_add_(0, self.numbers[part].flatten(), gathered.reshape(-1, *total.shape[1:]))

    def mask(self, part: slice) -> Tensor | None:
        size = self.tokens.shape[1]
        seen = self.tokens[self.numbers[part]] & self.there[part][..., None]
        own, elsewhere = torch.ones(size, size, dtype=torch.bool, device=seen.device), (seen.shape[1] - 1) * size
        order = F.pad(own.tril(), (elsewhere, 0), value=True) if self.heads.causal else None
        if seen.all():
            return order  # one mask for all of them, or none, is faster than one for each
        mask = seen.flatten(1)[:, None, None]
        mask = mask if order is None else mask & order
        if self.heads.padding is not None:
            mask = mask | F.pad(own.tril().triu(), (elsewhere, 0), value=False)  # a padded query sees itself: no row is empty
        return mask
