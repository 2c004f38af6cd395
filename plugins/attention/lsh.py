"""Attention within buckets, over several rounds of hashing. This module needs torch.

Scores are made for a slab of chunks at a time, small enough to stay in the processor's cache, and made again for the gradient:
nothing of the size tokens × chunk is kept. The rounds are one softmax over all the keys a query meets in any of them, so the
gradient needs nothing of a round but the sum that this softmax divides by.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .chunks import Hashes, Rule, allowed, plan
from .form import Heads
from .slabs import Gradients, Operands, Slab, in_order, rows_of

_NEVER = -1e9  # the score of what must not count
_LAST_RESORT = -1e3  # a token's score with itself, which with shared queries and keys would drown all others


def attend(heads: Heads, hashes: Hashes, rule: Rule) -> Tensor:
    """(B, H, n, d). A key that a query meets in several rounds counts as often."""
    seed = int(torch.randint(2**31, ())) if heads.dropout else 0
    weights = _Weights(rule, heads.scaling, heads.dropout, seed)
    output: Tensor = _Attention.apply(heads.q, heads.k, heads.v, plan(hashes, rule), weights)  # type: ignore[no-untyped-call]  # torch's
    return output


def decode(heads: Heads, hashes: Hashes, rule: Rule) -> Tensor:
    """(B, H, 1, d): what the strict rule gives the last token alone, without sorting the others."""
    q = heads.q.unflatten(1, (heads.k.shape[1], -1)).squeeze(3)  # (B, KV, G, d)
    same = hashes.keys.repeat_interleave(q.shape[2], dim=1) == hashes.queries  # (B, H, rounds, m)
    recent = same.flip(-1).cumsum(-1).flip(-1) <= rule.chunk
    times = (same & recent).sum(2).to(q.dtype)
    times[..., -1] = same.shape[2]  # itself, in every round
    scores = heads.scaling * (q @ heads.k.mT)
    if rule.shared:
        scores[..., -1] = _LAST_RESORT
    weights = (scores + times.log().view_as(scores)).softmax(-1)
    output: Tensor = (weights @ heads.v).flatten(1, 2).unsqueeze(2)
    return output


def normalised(x: Tensor) -> Tensor:
    """Queries as keys: as published, only their direction counts."""
    scale: Tensor = torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
    return x * scale


@dataclass(frozen=True)
class _Weights:
    """How a slab's weights are made, alike in both directions."""

    rule: Rule
    scaling: float
    dropout: float
    seed: int

    def scores(self, slab: Slab, others: Tensor) -> Tensor:
        """(c, chunk, 2 · chunk + 1): the last is the token's own."""
        scores = torch.bmm(slab.q, slab.k.mT).mul_(self.scaling).masked_fill_(~others, _NEVER)
        own = self.scaling * (slab.q * slab.own_k).sum(-1, keepdim=True)
        return torch.cat([scores, own.fill_(_LAST_RESORT) if self.rule.shared else own], dim=-1)

    def dropped(self, x: Tensor, slab: Slab) -> Tensor:
        """Dropout, the same whenever it is asked for this slab."""
        if not self.dropout:
            return x
        generator = torch.Generator(x.device).manual_seed(self.seed + slab.part.start)
        kept = torch.rand(x.shape, generator=generator, device=x.device, dtype=x.dtype) >= self.dropout
        return x * kept / (1 - self.dropout)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, *made: Any) -> Tensor:
        planned, weights = made
        operands = Operands(q, k, v, planned, weights.rule)
        outputs, sums = q.new_empty(*planned.chunks.row.shape, q.shape[-1]), q.new_empty(*planned.chunks.row.shape, 1)
        for slab in operands.slabs():
            scores = weights.scores(slab, allowed(slab.chunks, planned.keys, weights.rule))
            share = scores.softmax(-1)  # and no exp of ours, which is ten times slower where it underflows
            kept = weights.dropped(share, slab)
            outputs[slab.part] = torch.bmm(kept[..., :-1], slab.v).addcmul_(kept[..., -1:], slab.own_v)
            sums[slab.part] = scores.amax(-1, keepdim=True) - share.amax(-1, keepdim=True).log()
        rounds = in_order(sums, planned.place)
        output = (in_order(outputs, planned.place) * rounds.softmax(2)).sum(2)
        ctx.save_for_backward(q, k, v, output, sums, rounds.logsumexp(2))
        ctx.made = made
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, output, sums, joint = ctx.saved_tensors
        planned, weights = ctx.made
        gradient = gradients[0].contiguous()
        operands = Operands(q, k, v, planned, weights.rule)
        results = Gradients(operands)
        mean = (gradient * output).sum(-1, keepdim=True)  # of the weights' gradients, under the weights
        for slab in operands.slabs():
            empty = (slab.chunks.position < 0).unsqueeze(-1)
            of_round = (sums[slab.part] - rows_of(joint, slab.chunks.row)).exp().masked_fill_(empty, 0)
            scores = weights.scores(slab, allowed(slab.chunks, planned.keys, weights.rule))
            share = scores.softmax(-1).mul_(of_round)
            above = rows_of(gradient, slab.chunks.row)
            pull = torch.cat([torch.bmm(above, slab.v.mT), (above * slab.own_v).sum(-1, keepdim=True)], dim=-1)
            pull = weights.dropped(pull, slab).sub(rows_of(mean, slab.chunks.row)).mul_(share)
            if weights.rule.shared:
                pull[..., -1] = 0  # that score is a constant
            results.add(slab, pull.mul_(weights.scaling), weights.dropped(share, slab), above)
        return *results.result(), None, None
