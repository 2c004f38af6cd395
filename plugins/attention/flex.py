"""Patterns of blocks as FlexAttention's compiled kernels, which skip what a pattern leaves out. For CUDA; needs torch.

A pattern is two things: which tiles of 128 x 128 pairs the kernels visit, and a rule that decides each pair of a tile that is
seen only in part. Tiles are of 128 whatever a form's blocks are, for the backward kernels take no smaller ones on some GPUs.
Their lists have an entry for each tile, visited or not (one for 16384 pairs), because that is the format of `BlockMask`.

Kernels are compiled when a shape first comes, within warm-up or evaluation, and counted as `train.compile_s` or
`infer.compile_s`. Training has one shape, and its kernels are made for it; evaluation has many, and shares kernels among them.
"""

from collections.abc import Callable, MutableMapping
from copy import copy
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.utils._python_dispatch import is_in_torch_dispatch_mode
from torch.utils.weak import WeakTensorKeyDictionary

from .form import Heads

if TYPE_CHECKING:
    from .band import Band

_TILE = 128
_LEAST_WIDTH = 16  # channels: the narrowest matrix product of the kernels
_TYPES = (torch.float32, torch.bfloat16, torch.float16)
_KERNELS = 64  # at most; Dynamo's own limit is 8, which grad mode, padding, batches of one and a few lengths may pass

_Rule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def applies(heads: Heads) -> bool:
    """Whether the kernels can do it; the rest is for tensor code, as all is on CPUs.

    They have no dropout, and gain nothing where the queries are fewer than a tile's. What watches single operators (a FLOP
    counter) keeps Dynamo from compiling, and a model that is compiled as a whole compiles the tensor code.
    """
    q = heads.q
    if not q.is_cuda or torch.compiler.is_compiling() or is_in_torch_dispatch_mode():
        return False
    return q.shape[2] >= _TILE and q.shape[3] >= _LEAST_WIDTH and q.dtype in _TYPES and not heads.dropout


def applies_to_blocks(heads: Heads, size: int) -> bool:
    """As `applies`; and blocks must fill tiles, by twos or one several: of smaller ones a tile would hold few that are seen."""
    return applies(heads) and (size % _TILE == 0 or size * 2 == _TILE)


def flex_band(heads: Heads, band: "Band") -> Tensor:
    """Exact attention of the pairs in the band → (B, n, H, d)."""
    n, m = heads.q.shape[2], heads.k.shape[2]
    tiles = _band_tiles(band, n, m, heads.padding is not None, heads.q.device)
    return _attend(heads, tiles, _band_rule(band, m - n, heads.padding))


def flex_blocks(heads: Heads, chosen: Tensor, size: int) -> Tensor:
    """Exact attention of blocks of queries to the blocks of keys chosen for them → (B, n, H, d); see `block_attention`."""
    n, m = heads.q.shape[2], heads.k.shape[2]
    start = (m - n) // size * size  # of the first query's block
    before = m - n - start  # queries of that block which came earlier, and are made up
    pattern = _pattern(heads, chosen, size, start)
    rule = _block_rule(pattern.seen, size, start, heads)
    return _attend(replace(heads, q=F.pad(heads.q, (0, 0, before, 0))), pattern.tiles, rule)[:, before:]


def _band_rule(band: "Band", offset: int, padding: Tensor | None) -> _Rule:
    causal, left, right, first = band.causal, band.left, band.right, band.first  # plain numbers become part of the kernel

    def rule(row: Tensor, _: Tensor, query: Tensor, key: Tensor) -> Tensor:
        ahead = key - query - offset
        seen = (ahead >= -left) & (ahead <= right)
        if first:
            far = key < first
            seen = seen | (far & (ahead <= 0) if causal else far)
        if padding is not None:
            seen = seen & padding[row, key] | (ahead == 0)  # a padded query sees itself: no row is empty
        return seen

    return rule


def _block_rule(chosen: Tensor, size: int, start: int, heads: Heads) -> _Rule:
    causal, padding, shared = heads.causal, heads.padding, heads.q.shape[1] // heads.k.shape[1]

    def rule(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = chosen[row, head // shared, query // size, key // size]
        if causal:
            seen = seen & (key <= query + start)
        if padding is not None:
            seen = seen & padding[row, key] | (key == query + start)
        return seen

    return rule


@lru_cache(maxsize=64)
def _band_tiles(band: "Band", n: int, m: int, padded: bool, device: torch.device) -> BlockMask:
    """For the last n of m positions. Made once for all layers and steps: padding changes the rule alone."""
    with torch.inference_mode(False):  # what evaluation makes, training may need
        (query, last_query), (key, last_key) = _spans(m - n, m, device), _spans(0, m, device)
        query, last_query = query[:, None], last_query[:, None]
        some = (last_key - query >= -band.left) & (key - last_query <= band.right)
        every = (key - last_query >= -band.left) & (last_key - query <= band.right)
        some |= (key < band.first) & ((key <= last_query) | (not band.causal))
        every |= (last_key < band.first) & ((last_key <= query) | (not band.causal))
        return _block_mask(some[None, None], every[None, None], (n, m), padded)


class _Pattern(NamedTuple):
    """The blocks that were chosen, in two forms."""

    made_for: tuple[Any, ...]
    seen: Tensor
    """(B, KV, query blocks, key blocks)"""
    tiles: BlockMask


_patterns: MutableMapping[Tensor, _Pattern] = WeakTensorKeyDictionary()


def _pattern(heads: Heads, chosen: Tensor, size: int, start: int) -> _Pattern:
    """Kept for as long as `chosen` lives: a fixed pattern is turned into tiles once, choices by content each time."""
    made_for = (size, start, *heads.q.shape[:2], *heads.k.shape[:3], heads.causal, heads.padding is not None)
    held = _patterns.get(chosen)
    if held is None or held.made_for != made_for:
        with torch.inference_mode(False):
            seen, tiles = _chosen_tiles(heads, chosen, size, start)
        held = _patterns[chosen] = _Pattern(made_for, seen, tiles)
    return held


def _chosen_tiles(heads: Heads, chosen: Tensor, size: int, start: int) -> tuple[Tensor, BlockMask]:
    batch, groups, m, _ = heads.k.shape
    count = -(-m // size)
    seen = torch.zeros(*chosen.shape[:3], count + 1, dtype=torch.bool, device=chosen.device)
    seen = seen.scatter_(3, torch.where(chosen < 0, count, chosen), value=True)[..., :count]  # none goes where it is cut off
    some, every = _in_tiles(seen, size, m - start, m)
    if heads.causal:
        (query, last_query), (key, last_key) = _spans(start, m, chosen.device), _spans(0, m, chosen.device)
        some &= key <= last_query[:, None]
        every &= last_key <= query[:, None]
    if some.shape[1] > 1:
        shared = heads.q.shape[1] // groups
        some, every = (tiles.repeat_interleave(shared, 1) for tiles in (some, every))
    tiles = _block_mask(some, every, (m - start, m), heads.padding is not None)
    return seen.expand(batch, groups, -1, -1), tiles


def _in_tiles(seen: Tensor, size: int, n: int, m: int) -> tuple[Tensor, Tensor]:
    """Of which tiles a part is in blocks that are seen, and of which all; beyond the end there is nothing to see."""
    if size < _TILE:
        ends = (0, seen.shape[3] % 2, 0, seen.shape[2] % 2)
        quarters = [F.pad(seen, ends, value=filled).unflatten(3, (-1, 2)).unflatten(2, (-1, 2)) for filled in (False, True)]
        return quarters[0].any(5).any(3), quarters[1].all(5).all(3)
    tiles = seen.repeat_interleave(size // _TILE, 2).repeat_interleave(size // _TILE, 3)[..., : _tiles(n), : _tiles(m)]
    return tiles, tiles.clone()


def _spans(start: int, stop: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The first and the last position of each tile."""
    first = torch.arange(start, stop, _TILE, device=device)
    return first, (first + _TILE - 1).clamp(max=stop - 1)


def _tiles(length: int) -> int:
    return -(-length // _TILE)


def _block_mask(some: Tensor, every: Tensor, lengths: tuple[int, int], padded: bool) -> BlockMask:
    """From tiles (B or 1, H or 1, query tiles, key tiles). The rule is applied to all of them if there is padding."""
    if padded:
        return BlockMask.from_kv_blocks(*_lists(some), BLOCK_SIZE=_TILE, seq_lengths=lengths)
    return BlockMask.from_kv_blocks(*_lists(some & ~every), *_lists(every), BLOCK_SIZE=_TILE, seq_lengths=lengths)


def _lists(tiles: Tensor) -> tuple[Tensor, Tensor]:
    """For each row how many tiles, and which; in order, for the kernels stop early in a last tile that is not whole."""
    counts, order = tiles.sum(-1), tiles.int().argsort(dim=-1, descending=True, stable=True)
    return counts.to(torch.int32), order.to(torch.int32).contiguous()


def _attend(heads: Heads, tiles: BlockMask, rule: _Rule) -> Tensor:
    from torch._dynamo import config  # here, for importing Dynamo takes seconds that CPUs need not spend

    device = heads.q.device.type
    kind = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else heads.q.dtype
    q, k, v = (x.to(kind) for x in (heads.q, heads.k, heads.v))
    mask = copy(tiles)
    mask.mask_mod = rule
    with config.patch(recompile_limit=_KERNELS):
        attended: Tensor = _compiled(fixed=torch.is_grad_enabled())(q, k, v, mask, heads.scaling)
    return attended.transpose(1, 2)


@lru_cache
def _compiled(*, fixed: bool) -> Callable[..., Tensor]:
    """One for the whole process. A full graph: where Dynamo gives up, past its limit as well, it raises an error."""
    return torch.compile(_attention, fullgraph=True, dynamic=False if fixed else None)


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, scaling: float) -> Tensor:
    if not torch.compiler.is_compiling():
        raise RuntimeError("FlexAttention was not compiled (is Dynamo disabled?): uncompiled it would build all pairs' scores")
    return flex_attention(q, k, v, block_mask=mask, scale=scaling, enable_gqa=q.shape[1] != k.shape[1])
