"""The tensors of LSH attention, some chunks at a time, and their gradients put together again. This module needs torch."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .chunks import Chunks, Plan, Rule

_SCORES = {"cpu": 2**18, "cuda": 2**25}  # in a slab: what stays in a core's cache, what keeps a GPU busy


class Slab(NamedTuple):
    """The queries (c, chunk, d) of some chunks, and their keys and values (c, 2 · chunk, d)."""

    part: slice
    """Which of all chunks these are."""
    chunks: Chunks
    q: Tensor
    k: Tensor
    v: Tensor
    own_k: Tensor
    """(c, chunk, d): the key of each query's own token."""
    own_v: Tensor


class Operands:
    """Queries, keys and values, of which slabs are taken. Keys and values are put in the order of their buckets once."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, planned: Plan, rule: Rule) -> None:
        # Rows of what lies in another order would be a copy of everything, for each slab.
        self.q, self.k, self.v = q.contiguous(), k.contiguous(), v.contiguous()
        self.planned, self.chunk = planned, rule.chunk
        batch, heads, tokens, _ = k.shape
        head = torch.arange(batch * heads, device=k.device).view(batch, heads, 1, 1, 1)
        rows = planned.keys.position.clamp(min=0) + tokens * head
        self._sorted = [rows_of(x, rows).view(-1, rule.chunk * x.shape[-1]) for x in (self.k, self.v)]

    def slabs(self) -> Iterator[Slab]:
        """All of them in turn."""
        count, step = len(self.planned.chunks.row), max(1, _SCORES[self.k.device.type] // (2 * self.chunk**2))
        for start in range(0, count, step):
            part = slice(start, min(count, start + step))
            chunks = Chunks(*(tensor[part] for tensor in self.planned.chunks))
            k, v = (x.index_select(0, chunks.keys.flatten()).view(len(chunks.keys), 2 * self.chunk, -1) for x in self._sorted)
            own_k, own_v = rows_of(self.k, chunks.own), rows_of(self.v, chunks.own)
            yield Slab(part, chunks, rows_of(self.q, chunks.row), k, v, own_k, own_v)


class Gradients:
    """Those of the operands, added slab by slab."""

    def __init__(self, operands: Operands) -> None:
        self._operands = operands
        q, k, planned = operands.q, operands.k, operands.planned
        self._q, self._own_k, self._own_v = (q.new_empty(*planned.chunks.row.shape, q.shape[-1]) for _ in range(3))
        sorted_keys = planned.keys.position.flatten(0, 3)
        self._k, self._v = (k.new_zeros(len(sorted_keys), operands.chunk * k.shape[-1]) for _ in range(2))

    def add(self, slab: Slab, scores: Tensor, weights: Tensor, output: Tensor) -> None:
        """From the gradients of the slab's scores and of its output, and its weights; the last column is the own token's."""
        others, own = scores[..., :-1], scores[..., -1:]
        self._q[slab.part] = torch.bmm(others, slab.k).addcmul_(own, slab.own_k)
        self._own_k[slab.part] = own * slab.q
        self._own_v[slab.part] = weights[..., -1:] * output
        blocks = slab.chunks.keys.flatten()
        self._k.index_add_(0, blocks, torch.bmm(others.mT, slab.q).view(len(blocks), -1))
        self._v.index_add_(0, blocks, torch.bmm(weights[..., :-1].mT, output).view(len(blocks), -1))

    def result(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of all queries, keys and values."""
        planned, (batch, heads, tokens, width) = self._operands.planned, self._operands.k.shape
        length = self._operands.q.shape[2]
        k, v = (in_order(x.view(-1, width), planned.keys.place).sum(2) for x in (self._k, self._v))
        q, own_k, own_v = (in_order(x, planned.place).sum(2) for x in (self._q, self._own_k, self._own_v))
        for total, own in ((k, own_k), (v, own_v)):
            total[:, :, tokens - length :] += own.view(batch, heads, -1, length, width).sum(2)
        return q, k, v


def rows_of(x: Tensor, rows: Tensor) -> Tensor:
    """Of x (…, d) as a list of vectors, those at these places: (*rows, d)."""
    return x.reshape(-1, x.shape[-1]).index_select(0, rows.flatten()).view(*rows.shape, x.shape[-1])


def in_order(x: Tensor, place: Tensor) -> Tensor:
    """From chunks, as many for each head, to the order of tokens: (B, heads, rounds, n, d) for places (B, heads, rounds, n)."""
    batch, heads = place.shape[:2]
    per_head = x.numel() // (x.shape[-1] * batch * heads)
    first = torch.arange(batch * heads, device=x.device).view(batch, heads, 1, 1) * per_head
    return rows_of(x, place + first)
