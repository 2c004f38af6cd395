"""Blocks of keys chosen by content. This module needs torch."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .blocks import block_attention, query_blocks
from .cache import Growing, past_of
from .form import Form, Heads


class RoutedPast(Growing):
    """All keys and values, and what routing needs of the past: queries are not kept."""

    mean_keys: Tensor | None = None
    """(B, KV, whole blocks, d)"""
    route: Tensor | None = None
    """(B, KV, d), of the block that is not whole yet."""
    routed: Tensor | None = None
    """(B), whether a token has gone into it."""

    def reset(self) -> None:
        """As new."""
        super().reset()
        self.mean_keys = self.route = self.routed = None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Beam search: rows move."""
        super().reorder_cache(beam_idx)
        kept = (x if x is None else x.index_select(0, beam_idx) for x in (self.mean_keys, self.route, self.routed))
        self.mean_keys, self.route, self.routed = kept


@dataclass(frozen=True)
class RoutedBlocks(Form):
    """Each block of queries attends to its own block of keys and to the best others: highest product of route and mean key.

    The route is the mean of the block's queries, or, with `first_query`, the first of them, which no later token can change. On
    causal models only blocks wholly in the past are candidates. Query heads that share a key head route together.
    """

    size: int
    count: int
    first_query: bool

    def __call__(self, module: nn.Module, heads: Heads) -> Tensor:
        """Linear in the number of tokens but for the routing, whose scores are one in size² of full attention's."""
        with torch.no_grad():
            chosen = self._chosen(heads, past_of(module))
        return block_attention(heads, chosen, self.size)

    def past_layer(self) -> RoutedPast:
        """Any block may be chosen later, so all are kept."""
        return RoutedPast()

    def _chosen(self, heads: Heads, past: Any) -> Tensor:
        blocks = query_blocks(heads, self.size)
        scores = self._routes(heads, blocks, past) @ self._mean_keys(heads, past).transpose(-1, -2)
        rows, candidates = (torch.arange(start, blocks.stop, device=scores.device) for start in (blocks.start, 0))
        barred = candidates >= rows[:, None] if heads.causal else candidates == rows[:, None]
        best = scores.masked_fill(barred | scores.isnan(), -torch.inf).topk(min(self.count, blocks.stop) - 1)
        others = best.indices.masked_fill(best.values == -torch.inf, -1)
        return torch.cat([others, rows.view(1, 1, -1, 1).expand(*others.shape[:3], 1)], dim=-1)

    def _mean_keys(self, heads: Heads, past: Any) -> Tensor:
        """(B, KV, key blocks, d), of tokens alone: a block without any has 0 / 0, and is never chosen."""
        m = heads.k.shape[2]
        known = past.mean_keys if past is not None and past.mean_keys is not None else heads.k[:, :, :0]
        start = known.shape[2] * self.size
        tokens = self._in_blocks(_tokens(heads)[:, None, start:, None], 0).to(heads.k.dtype)
        sums = (self._in_blocks(heads.k[:, :, start:], 0) * tokens).sum(3)
        means = torch.cat([known, sums / tokens.sum(3)], dim=2)
        if past is not None:
            past.mean_keys = means[:, :, : m // self.size]
        return means

    def _routes(self, heads: Heads, blocks: range, past: Any) -> Tensor:
        """(B, KV, query blocks, d), up to a positive factor, which changes no choice."""
        n, m = heads.q.shape[2], heads.k.shape[2]
        before = m - n - blocks.start * self.size  # queries of the first block that came earlier
        q = self._in_blocks(heads.q.unflatten(1, (heads.k.shape[1], -1)).sum(2), before)
        counted = self._in_blocks(_tokens(heads)[:, None, m - n :, None], before)
        resumed = before > 0 and past is not None and past.route is not None
        if self.first_query:
            counted = counted & (counted.cumsum(3) == 1)
            if resumed:
                counted[:, :, 0] &= ~past.routed[:, None, None, None]
        routes = (q * counted).sum(3)
        if resumed:
            routes[:, :, 0] += past.route
        if past is not None:
            routed = counted[:, 0, -1, :, 0].any(-1)
            past.routed = routed | past.routed if resumed and len(blocks) == 1 else routed
            past.route = routes[:, :, -1]
        return routes

    def _in_blocks(self, x: Tensor, before: int) -> Tensor:
        """(B, any, tokens, any) → (B, any, blocks, size, any), zeros where the first or the last block is not whole."""
        blocks: Tensor = F.pad(x, (0, 0, before, -(before + x.shape[2]) % self.size)).unflatten(2, (-1, self.size))
        return blocks


def _tokens(heads: Heads) -> Tensor:
    """The padding, also where there is none."""
    everything = torch.ones(1, heads.k.shape[2], dtype=torch.bool, device=heads.k.device)
    return (everything if heads.padding is None else heads.padding).expand(heads.k.shape[0], -1)
