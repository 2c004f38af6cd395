"""BigBird's pattern. This module needs torch."""

from dataclasses import dataclass, replace
from functools import lru_cache
from random import Random

import torch
from torch import Tensor, nn

from .blocks import block_attention, query_blocks
from .cache import Growing
from .form import Form, Heads


@dataclass(frozen=True)
class RandomBlocks(Form):
    """Each block of queries attends to those around it, to the outermost ones, and to some drawn at random once and for all.

    Two-sided, the `outer` blocks at either end also attend to everything, as published. Causal, the outer ones are the first,
    the window is the own block with those before it, and all that is drawn lies in the past.
    """

    size: int
    window: int
    outer: int
    drawn: int
    seed: int

    def __call__(self, module: nn.Module, heads: Heads) -> Tensor:
        """Linear in the number of tokens."""
        blocks = query_blocks(heads, self.size)
        total = None if heads.causal else blocks.stop
        layer = getattr(module, "layer_idx", None) or 0
        chosen = _pattern(self, layer, heads.k.shape[1], blocks, total, heads.q.device)
        attended = block_attention(heads, chosen, self.size)
        return attended if heads.causal else self._outer_see_all(heads, attended)

    def past_layer(self) -> Growing:
        """A later block may have drawn any earlier one, so all are kept; a step reads those of its own row."""
        return Growing()

    def _outer_see_all(self, heads: Heads, attended: Tensor) -> Tensor:
        n, m = heads.q.shape[2], heads.k.shape[2]
        low = max(0, self.outer * self.size - (m - n))
        high = max(low, (-(-m // self.size) - self.outer) * self.size - (m - n))
        mask = None if heads.padding is None else heads.padding[:, None, None]
        ends = [replace(heads, q=q).softmax(mask) for q in (heads.q[:, :, :low], heads.q[:, :, high:])]
        return torch.cat([ends[0], attended[:, low:high], ends[1]], dim=1)


@lru_cache(maxsize=4096)
def _pattern(  # noqa: PLR0913, PLR0917 - all that it depends on
    form: RandomBlocks, layer: int, heads: int, blocks: range, total: int | None, device: torch.device
) -> Tensor:
    """(1, heads, blocks, any), as `block_attention` takes it; `total` is None on causal models, whose rows never change."""
    rows = [[_row(form, f"{layer} {head}", block, total) for block in blocks] for head in range(heads)]
    return torch.tensor([rows], device=device)


def _row(form: RandomBlocks, place: str, own: int, total: int | None) -> list[int]:
    if total is None:
        limit, seen = own, {*range(max(0, own - form.window + 1), own), *range(min(form.outer, own))}
        width = form.outer + form.window + form.drawn
    else:
        half = form.window // 2
        ends = {*range(min(form.outer, total)), *range(max(0, total - form.outer), total)}
        limit, seen = total, ({*range(max(0, own - half), min(total, own + half + 1))} | ends) - {own}
        width = 2 * form.outer + 2 * half + 1 + form.drawn
    taken = seen | {own}
    random = Random(f"{form.seed} {place} {own}")  # noqa: S311 - a pattern that is the same in every process, not a secret
    candidates = random.sample(range(limit), min(limit, form.drawn + len(taken)))
    drawn = [block for block in candidates if block not in taken][: form.drawn]
    chosen = [*sorted(seen), *drawn, own]
    return [-1] * (width - len(chosen)) + chosen
