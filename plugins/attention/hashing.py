"""Locality-sensitive hashing: vectors of similar direction fall into the same bucket. This module needs torch."""

import torch
from torch import Tensor

PADDING = 2**20  # the bucket of what is no token: behind all others, so that no query shares it
_MOST_AT_ONCE = 64  # buckets that one product tells apart; more are the pairs of two products, whose cost grows as the root


def rotations(width: int, rounds: int, buckets: int) -> Tensor:
    """(1, width, rounds, …): random projections for `buckets`, a power of two, in each of the rounds, for any head."""
    return torch.randn(1, width, rounds, sum(_factors(buckets)) // 2)


def buckets_of(x: Tensor, rotation: Tensor, buckets: int, padding: Tensor | None) -> Tensor:
    """(B, H, rounds, n): in each round, which of the projected directions and their opposites x (B, H, n, d) is nearest to.

    Rotations (heads, width, rounds, …) are one for all heads, or one for each, or for each group of neighbours. No gradient
    passes a choice.
    """
    grouped = x.detach().unflatten(1, (rotation.shape[0], -1))
    projected = torch.einsum("bkgnd,kdrj->bkgrnj", grouped, rotation.to(x.dtype)).flatten(1, 2)
    number, factor = torch.zeros(projected.shape[:-1], dtype=torch.long, device=x.device), 1
    factors = _factors(buckets)
    for count, part in zip(factors, projected.split([count // 2 for count in factors], dim=-1), strict=True):
        nearest = part.abs().argmax(-1, keepdim=True)
        number += factor * (nearest + (count // 2) * (part.gather(-1, nearest) < 0)).squeeze(-1)
        factor *= count
    return number if padding is None else number.masked_fill(~padding.bool()[:, None, None], PADDING)


def _factors(buckets: int) -> list[int]:
    if buckets <= _MOST_AT_ONCE:
        return [buckets]
    power = buckets.bit_length() - 1
    return [2 ** (power // 2), 2 ** (power - power // 2)]
