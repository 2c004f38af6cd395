"""Attention within a band around the diagonal, and from everywhere to the first tokens: O(n · width). Needs torch."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from . import flex
from .form import Heads
from .gathered import AT_ONCE, Gathering, attend

_BLOCK = 64  # queries that share their keys; larger ones compute more scores, which the mask then drops
_EDGE = 256  # queries at either end that are attended at once


@dataclass(frozen=True)
class Band:
    """A query sees `left` keys before its own, `right` behind it, and the sequence's `first` keys (causal: the past ones)."""

    causal: bool
    left: int
    right: int
    first: int = 0

    def allowed(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Which pairs of positions meet, (queries, keys)."""
        ahead = keys - queries[:, None]
        far = (keys < self.first) & (ahead <= 0 if self.causal else True)
        return (ahead >= -self.left) & (ahead <= self.right) | far


def band_attention(heads: Heads, band: Band) -> Tensor:
    """Exact attention of the pairs in the band → (B, n, H, d)."""
    n = heads.q.shape[2]
    if n == 1 and band.causal:  # a decode step; a `Ring` keeps just what it can see
        heads = _reachable(heads, band.first, band.left + 1)
        return heads.softmax(None if heads.padding is None else heads.padding[:, None, None])
    if n < heads.k.shape[2]:
        heads = _reachable(heads, band.first, band.left + n)
    if flex.applies(heads):
        return flex.flex_band(heads, band)
    if n < heads.k.shape[2]:
        q = F.pad(heads.q, (0, 0, heads.k.shape[2] - n, 0))  # as many queries as keys; those made up are dropped again
        heads = replace(heads, q=q)
    # One sequence after the other, so that blocks can take the batch's place without a copy.
    rows = [_Row(_row(heads, row), band).attend()[-n:] for row in range(len(heads.q))]
    return torch.stack(rows) if len(rows) > 1 else rows[0][None]


def _row(heads: Heads, row: int) -> Heads:
    at = slice(row, row + 1)
    padding = None if heads.padding is None else heads.padding[at]
    return replace(heads, q=heads.q[at], k=heads.k[at], v=heads.v[at], padding=padding)


def _reachable(heads: Heads, first: int, near: int) -> Heads:
    """The first keys and the `near` last ones; the rest is out of the last queries' reach."""
    total = heads.k.shape[2]
    if total <= first + near:
        return heads
    k, v = (_first_and(x, 2, first, total - near, total) for x in (heads.k, heads.v))
    padding = None if heads.padding is None else _first_and(heads.padding, 1, first, total - near, total)
    return replace(heads, k=k, v=v, padding=padding)


def _first_and(x: Tensor, dim: int, first: int, low: int, high: int) -> Tensor:
    """Up to `first`, and from `low` to `high`."""
    near = x.narrow(dim, low, high - low)
    return torch.cat([x.narrow(dim, 0, first), near], dim=dim) if first else near


@dataclass(frozen=True)
class _Row:
    """One sequence, with as many queries as keys.

    Most queries stand in blocks whose keys are an overlapping view of all keys, so that SDPA runs over blocks as over a batch,
    with one mask for all. The queries too near to either end for that are attended apart.
    """

    heads: Heads
    band: Band

    def attend(self) -> Tensor:
        """(n, H, d)."""
        length, band = self.heads.q.shape[2], self.band
        skipped = _whole_blocks(band.first)  # no block's view has a first key in it, which would count twice
        start = skipped + _whole_blocks(band.left)
        blocks = (length - start - band.right) // _BLOCK
        if blocks <= 0:
            return torch.cat(self._edge(0, length))
        stop = start + blocks * _BLOCK
        return torch.cat([*self._edge(0, start), self._blocks(start, stop), *self._edge(stop, length)])

    def _edge(self, start: int, stop: int) -> list[Tensor]:
        return [self._near(at, min(at + _EDGE, stop)) for at in range(start, stop, _EDGE)]

    def _near(self, start: int, stop: int) -> Tensor:
        """Queries from `start` to `stop`, with all keys that they can reach."""
        heads, band = self.heads, self.band
        length = heads.q.shape[2]
        low, high, first = max(0, start - band.left), min(length, stop + band.right), min(band.first, length)
        if low <= first:
            low, high, first = 0, max(high, first), 0
        positions = torch.arange(length, device=heads.q.device)
        queries, keys = positions[start:stop], _first_and(positions, 0, first, low, high)
        mask = band.allowed(queries, keys)
        if heads.padding is not None:
            mask = mask & heads.padding[0, keys] | (queries[:, None] == keys)  # a padded query sees itself: no row is empty
        k, v = (_first_and(x, 2, first, low, high) for x in (heads.k, heads.v))
        return replace(heads, q=heads.q[:, :, start:stop], k=k, v=v).softmax(mask)[0]

    def _blocks(self, start: int, stop: int) -> Tensor:
        """Queries from `start` to `stop`, in whole blocks."""
        heads, band, first = self.heads, self.band, self.band.first
        low = start - _whole_blocks(band.left)
        keys = torch.arange(low, start + _BLOCK + band.right, device=heads.q.device)
        queries = keys[start - low : start - low + _BLOCK]
        seen = F.pad(band.allowed(queries, keys), (first, 0), value=True)
        own = F.pad(queries[:, None] == keys, (first, 0), value=False)
        q = heads.q[0, :, start:stop].unflatten(1, (-1, _BLOCK)).transpose(0, 1)
        views = _Views(first, low, len(keys), len(q), seen, own, heads.padding)
        return attend(q, heads.k[0], heads.v[0], views, heads).flatten(0, 1)


@dataclass(frozen=True)
class _Views(Gathering):
    """Each block of queries is given the first keys and an overlapping view of the others, a block further each time."""

    first: int
    low: int
    """Where the first block's view starts."""
    width: int
    """Keys in a view."""
    count: int
    """Blocks of queries."""
    seen: Tensor
    """(block, first + width), the same for all."""
    own: Tensor
    """(block, first + width), True for a query's own key."""
    padding: Tensor | None
    """(1, keys)"""

    def parts(self, k: Tensor) -> Iterable[slice]:
        if not self.first:  # views alone, which take no memory
            return (slice(0, self.count),)
        together = max(1, AT_ONCE[k.device.type] // (self.seen.shape[1] * k[:, 0].numel()))
        return (slice(at, min(at + together, self.count)) for at in range(0, self.count, together))

    def gather(self, x: Tensor, part: slice) -> Tensor:
        """(heads, keys, any) → (blocks, heads, first + width, any), a view unless there are first keys."""
        views = x[:, self.low :].unfold(1, self.width, _BLOCK)[:, part].permute(1, 0, 3, 2)
        return torch.cat([x[:, : self.first].expand(len(views), -1, -1, -1), views], dim=2) if self.first else views

    def scatter(self, total: Tensor, part: slice, gathered: Tensor) -> None:
        total[:, : self.first] += gathered[:, :, : self.first].sum(0)
        for block, view in enumerate(gathered[:, :, self.first :], part.start):
            start = self.low + block * _BLOCK
            total[:, start : start + self.width] += view

    def mask(self, part: slice) -> Tensor:
        if self.padding is None:
            return self.seen
        return self.seen & self.gather(self.padding[..., None], part)[..., 0][:, None] | self.own


def _whole_blocks(count: int) -> int:
    return -(-count // _BLOCK) * _BLOCK
