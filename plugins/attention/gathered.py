"""Attention to keys that are gathered for a few blocks of queries at a time, in both directions. This module needs torch."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .form import Heads

AT_ONCE = {"cpu": 2**19, "cuda": 2**26}  # elements of gathered keys: what a core's cache holds, what keeps a GPU busy


class Gathering(ABC):
    """Which keys each block of queries is given. Blocks stand where SDPA has its batch."""

    @abstractmethod
    def parts(self, k: Tensor) -> Iterable[slice]:
        """A few query blocks at a time."""

    @abstractmethod
    def gather(self, x: Tensor, part: slice) -> Tensor:
        """Of all keys, or of all values, those of these query blocks: (query blocks, KV, any, d)."""

    @abstractmethod
    def scatter(self, total: Tensor, part: slice, gathered: Tensor) -> None:
        """The reverse of `gather`, for gradients: add each to where it came from."""

    @abstractmethod
    def mask(self, part: slice) -> Tensor | None:
        """Which of them a query sees, as SDPA takes it; None if all. None sees nothing."""


def attend(q: Tensor, k: Tensor, v: Tensor, gathering: Gathering, heads: Heads) -> Tensor:
    """Queries (query blocks, H, size, d) to what is gathered for them → (query blocks, size, H, d).

    Of `heads`, only the scaling and the dropout count.
    """
    if torch.is_autocast_enabled(q.device.type):  # attention is cast, and its backward pass does not know
        q, k, v = (x.to(torch.get_autocast_dtype(q.device.type)) for x in (q, k, v))
    fused = q.device.type == "cpu" and not heads.dropout and q.shape[-1] == v.shape[-1]
    kernel = _Fused(heads.scaling) if fused else _Composed(heads.scaling, heads.dropout)
    attended: Tensor = _Gathered.apply(q, k, v, gathering, kernel)  # type: ignore[no-untyped-call]  # PyTorch leaves it so
    return attended


class _Gathered(torch.autograd.Function):
    """Gathered keys are several times as many as keys, so they are never there all at once.

    In the backward pass they are gathered again, which costs less than reading them from memory would.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, *how: Any) -> Tensor:
        gathering, kernel = how
        ctx.gathering, ctx.kernel, ctx.seed = gathering, kernel, kernel.seed()
        with _seeded(ctx.seed, q):
            results = [
                kernel.attend(q[at], gathering.gather(k, at), gathering.gather(v, at), gathering.mask(at))
                for at in gathering.parts(k)
            ]
        outputs, sums = zip(*results, strict=True)
        # The order that kernels write in and models go on with.
        output = torch.cat([part.transpose(1, 2) for part in outputs]) if len(outputs) > 1 else outputs[0].transpose(1, 2)
        ctx.save_for_backward(q, k, v, *((output, torch.cat(sums)) if kernel.remembers else ()))
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *kept = ctx.saved_tensors
        grad, kept = grad.transpose(1, 2), [x.transpose(1, 2) for x in kept[:1]] + kept[1:]
        gathering, kernel = ctx.gathering, ctx.kernel
        of_q, of_k, of_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        with _seeded(ctx.seed, q):
            for at in gathering.parts(k):
                inputs = q[at], gathering.gather(k, at), gathering.gather(v, at)
                of_q[at], *of_gathered = kernel.gradients(grad[at], inputs, gathering.mask(at), *(x[at] for x in kept))
                for total, more in zip((of_k, of_v), of_gathered, strict=True):
                    gathering.scatter(total, at, more)
        return of_q, of_k, of_v, None, None


class _Fused:
    """PyTorch's kernel for CPUs, called by its own name for the sums that it divides by: its backward pass needs nothing else.

    `scaled_dot_product_attention` runs the same kernel and keeps them to itself, so it would have to attend once more.
    """

    remembers = True

    def __init__(self, scaling: float) -> None:
        self._scaling = scaling

    def seed(self) -> int | None:
        return None

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        k, v = (_for_each_query_head(x, q) for x in (k, v))
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        output, sums = kernel(q, k, v, attn_mask=_added(mask, q), scale=self._scaling)
        return output, sums

    def gradients(self, grad: Tensor, inputs: tuple[Tensor, ...], mask: Tensor | None, *kept: Tensor) -> Iterator[Tensor]:
        q, *gathered = inputs
        k, v = (_for_each_query_head(x, q) for x in gathered)
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        results = kernel(grad, q, k, v, *kept, 0.0, False, attn_mask=_added(mask, q), scale=self._scaling)
        for given, gradient in zip(inputs, results, strict=True):
            yield gradient if given.shape == gradient.shape else gradient.unflatten(1, (given.shape[1], -1)).sum(2)


class _Composed:
    """Whatever PyTorch has for this device, with dropout; in the backward pass it attends again."""

    remembers = False

    def __init__(self, scaling: float, dropout: float) -> None:
        self._scaling, self._dropout = scaling, dropout

    def seed(self) -> int | None:
        """Dropout draws the same in the backward pass as in the forward pass."""
        return int(torch.randint(2**62, ())) if self._dropout else None

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        grouped = q.shape[1] != k.shape[1]
        output = F.scaled_dot_product_attention(q, k, v, mask, self._dropout, scale=self._scaling, enable_gqa=grouped)
        return output, output.new_empty(0)

    def gradients(self, grad: Tensor, inputs: tuple[Tensor, ...], mask: Tensor | None) -> tuple[Tensor, ...]:
        q, k, v = (x.detach().requires_grad_() for x in inputs)
        with torch.enable_grad():
            output, _ = self.attend(q, k, v, mask)
        return torch.autograd.grad(output, (q, k, v), grad)


def _for_each_query_head(x: Tensor, q: Tensor) -> Tensor:
    """Keys or values that groups of query heads share, once for each; a view if all share them."""
    return x.unsqueeze(2).expand(-1, -1, q.shape[1] // x.shape[1], -1, -1).flatten(1, 2)


def _added(mask: Tensor | None, q: Tensor) -> Tensor | None:
    """The mask as numbers to be added to the scores."""
    return None if mask is None else q.new_zeros(mask.shape).masked_fill_(~mask, -torch.inf)


@contextmanager
def _seeded(seed: int | None, x: Tensor) -> Iterator[None]:
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        torch.manual_seed(seed)
        yield
