"""Attention from blocks of queries to a few blocks of keys each: O(n · blocks · size). This module needs torch."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .form import Heads

_AT_ONCE = 2**22  # elements of gathered keys: enough to keep a GPU or a core busy, and few beside the model's activations


def query_blocks(heads: Heads, size: int) -> range:
    """The blocks that the queries lie in, the first and the last one perhaps in part. Blocks are counted from the first key."""
    n, m = heads.q.shape[2], heads.k.shape[2]
    return range((m - n) // size, -(-m // size))


def block_attention(heads: Heads, chosen: Tensor, size: int) -> Tensor:
    """Exact attention of each query block to the key blocks chosen for it → (B, n, H, d).

    `chosen` is (B or 1, KV or 1, query blocks, any): numbers of key blocks, each at most once in a row, or -1 for none. The
    query block's own number stands last, and if the heads are causal those before it are smaller.

    Gathered keys are several times as many as keys. They are gathered again in the backward pass instead of kept for it.
    """
    n, m = heads.q.shape[2], heads.k.shape[2]
    if n == 1 and heads.causal:
        return _step(heads, chosen[:, :, 0], size)
    blocks = query_blocks(heads, size)
    before, after = m - n - blocks.start * size, blocks.stop * size - m
    batch, groups = heads.k.shape[:2]
    q = F.pad(heads.q, (0, 0, before, after)).unflatten(2, (len(blocks), size)).unflatten(1, (groups, -1))
    q = q.transpose(2, 3).flatten(0, 1)  # (B · KV, query blocks, H / KV, size, d)
    k, v = (F.pad(x, (0, 0, 0, after)).unflatten(2, (-1, size)).flatten(0, 1) for x in (heads.k, heads.v))
    chosen = chosen.expand(batch, groups, -1, -1).flatten(0, 1)
    padding = torch.ones(1, m, dtype=torch.bool, device=q.device) if heads.padding is None else heads.padding
    tokens = F.pad(padding, (0, after)).unflatten(1, (-1, size)).expand(batch, -1, -1).repeat_interleave(groups, 0)

    together = max(1, _AT_ONCE // (chosen[0].numel() * k[0, 0].numel()))
    parts = [
        _attend_again(heads, *(x[at : at + together] for x in (q, k, v, chosen, tokens))) for at in range(0, len(q), together)
    ]
    out: Tensor = torch.cat(parts).unflatten(0, (batch, groups))  # (B, KV, query blocks, size, H / KV, d)
    return out.permute(0, 2, 3, 1, 4, 5).flatten(3, 4).flatten(1, 2)[:, before : before + n]


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


def _attend_again(heads: Heads, *args: Any) -> Tensor:
    if not torch.is_grad_enabled():
        return _attend(heads, *args)
    attended: Tensor = checkpoint(_attend, heads, *args, use_reentrant=False, preserve_rng_state=heads.dropout > 0)
    return attended


def _attend(  # noqa: PLR0913, PLR0917 - tensors that belong together, one argument each for autograd
    heads: Heads, q: Tensor, k: Tensor, v: Tensor, chosen: Tensor, tokens: Tensor
) -> Tensor:
    """P pairs of sequence and key head: q (P, blocks, H / KV, size, d), k and v (P, key blocks, size, d)."""
    pairs, count, _ = chosen.shape
    size = k.shape[2]
    rows = (chosen.clamp(min=0) + k.shape[1] * torch.arange(pairs, device=k.device)[:, None, None]).flatten()
    gathered = [x.flatten(0, 1).index_select(0, rows).view(pairs * count, 1, -1, x.shape[3]) for x in (k, v)]
    mask = (tokens.flatten(0, 1)[rows] & (chosen.flatten() >= 0)[:, None]).view(pairs, count, 1, -1)
    own = torch.ones(size, size, dtype=torch.bool, device=k.device)
    elsewhere = mask.shape[-1] - size
    if heads.causal:
        mask = mask & F.pad(own.tril(), (elsewhere, 0), value=True)
    if heads.padding is not None:
        mask = mask | F.pad(own.tril().triu(), (elsewhere, 0), value=False)  # a padded query sees itself: no row is empty
    part = replace(heads, q=q.flatten(0, 1), k=gathered[0], v=gathered[1])
    attended: Tensor = part.softmax(mask.flatten(0, 1)[:, None]).unflatten(0, (pairs, count))
    return attended
