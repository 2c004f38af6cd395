"""Attention from blocks of queries to a few blocks of keys each: O(n · blocks · size). This module needs torch."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from . import flex
from .form import Heads

_AT_ONCE = {"cpu": 2**19, "cuda": 2**26}  # elements of gathered keys: what a core's cache holds, what keeps a GPU busy


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
    if torch.is_autocast_enabled(q.device.type):  # attention is cast, and its backward pass does not know
        q, k, v = (x.to(torch.get_autocast_dtype(q.device.type)) for x in (q, k, v))
    padding = torch.ones(1, m, dtype=torch.bool, device=q.device) if heads.padding is None else heads.padding
    tokens = F.pad(padding, (0, after)).unflatten(1, (-1, size)).expand(batch, -1, -1).repeat_interleave(groups, 0)
    first = torch.arange(0, len(k), blocks.stop, device=q.device).view(batch, groups, 1, 1)
    numbers = (chosen.clamp(min=0) + first).flatten(0, 2)
    there = (chosen >= 0).expand(batch, groups, -1, -1).flatten(0, 2)
    choice = _Choice(heads, numbers, there, tokens.flatten(0, 1))
    gathered: Any = _Gathered.apply(q, k, v, choice)  # type: ignore[no-untyped-call]  # PyTorch leaves it so
    out: Tensor = gathered.unflatten(0, (batch, groups, -1))  # (B, KV, query blocks, size, H / KV, d)
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


@dataclass(frozen=True)
class _Choice:
    """For each block of queries (all sequences' and key heads' in one row), which blocks of keys it is given."""

    heads: Heads
    numbers: Tensor
    """(query blocks, any)"""
    there: Tensor
    """(query blocks, any), False where the number means none."""
    tokens: Tensor
    """(key blocks, size), False where padding is."""

    def parts(self, k: Tensor) -> Iterator[slice]:
        """A few query blocks at a time."""
        together = max(1, _AT_ONCE[k.device.type] // (self.numbers.shape[1] * k[0].numel()))
        return (slice(at, at + together) for at in range(0, len(self.numbers), together))

    def gather(self, x: Tensor, part: slice) -> Tensor:
        """Blocks (all, size, d) → those of these query blocks (query blocks, 1, any · size, d)."""
        return x.index_select(0, self.numbers[part].flatten()).view(-1, 1, self.numbers.shape[1] * x.shape[1], x.shape[2])

    def attend(self, q: Tensor, k: Tensor, v: Tensor, part: slice) -> Tensor:
        """Queries (query blocks, H / KV, size, d) to what was gathered for them → (query blocks, size, H / KV, d)."""
        size = q.shape[2]
        mask = (self.tokens[self.numbers[part]] & self.there[part][..., None]).flatten(1)[:, None, None]
        own, elsewhere = torch.ones(size, size, dtype=torch.bool, device=q.device), k.shape[2] - size
        if self.heads.causal:
            mask = mask & F.pad(own.tril(), (elsewhere, 0), value=True)
        if self.heads.padding is not None:
            mask = mask | F.pad(own.tril().triu(), (elsewhere, 0), value=False)  # a padded query sees itself: no row is empty
        return replace(self.heads, q=q, k=k, v=v).softmax(mask)


class _Gathered(torch.autograd.Function):
    """Gathered keys are several times as many as keys, so they are never there all at once.

    In the backward pass they are gathered again and attended to again, which costs less than reading them from memory would.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, choice: _Choice) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.choice, ctx.seed = choice, _dropout_seed(choice.heads)
        with _seeded(ctx.seed, q):
            parts = [choice.attend(q[at], choice.gather(k, at), choice.gather(v, at), at) for at in choice.parts(k)]
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v = ctx.saved_tensors
        choice = ctx.choice
        of_q, of_k, of_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        with _seeded(ctx.seed, q), torch.enable_grad():
            for at in choice.parts(k):
                inputs = [x.detach().requires_grad_() for x in (q[at], choice.gather(k, at), choice.gather(v, at))]
                of_q[at], *of_gathered = torch.autograd.grad(choice.attend(*inputs, at), inputs, grad[at])
                for total, more in zip((of_k, of_v), of_gathered, strict=True):
                    total.index_add_(0, choice.numbers[at].flatten(), more.reshape(-1, *total.shape[1:]))
        return of_q, of_k, of_v, None


def _dropout_seed(heads: Heads) -> int | None:
    return int(torch.randint(2**62, ())) if heads.dropout else None


@contextmanager
def _seeded(seed: int | None, x: Tensor) -> Iterator[None]:
    """Dropout draws the same in the backward pass as in the forward pass."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        torch.manual_seed(seed)
        yield
