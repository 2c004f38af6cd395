"""Queries, keys and values as plain tensors, for the mathematics of attention forms."""

import torch
from effbench_plugins.attention import hashing
from effbench_plugins.attention.chunks import Hashes
from effbench_plugins.attention.form import Heads
from torch.utils._python_dispatch import TorchDispatchMode

WIDTH = 8


def tensors(length, *, heads=4, kv_heads=2, width=WIDTH, dtype=torch.float64, queries=None):
    shapes = [(heads, queries or length), (kv_heads, length), (kv_heads, length)]
    return [torch.randn(2, h, n, width, dtype=dtype) for h, n in shapes]


def right_padding(length):
    return torch.arange(length) < torch.tensor([[length], [length - 5]])


def heads_of(q, k, v, padding=None, *, scaling=1.0, dropout=0.0, causal=True):
    return Heads(q, k, v, padding, scaling, dropout, causal)


def repeated(x, heads=4):
    return x.repeat_interleave(heads // x.shape[1], dim=1)


def hashed(q, k, *, rounds=2, buckets=4, padding=None):
    rotation = hashing.rotations(q.shape[-1], rounds, buckets).to(q.dtype)
    own = None if padding is None else padding[:, -q.shape[2] :]
    return Hashes(hashing.buckets_of(q, rotation, buckets, own), hashing.buckets_of(k, rotation, buckets, padding))


class NoLargeTensor(TorchDispatchMode):
    """Fails where an operator makes storage for so many elements or more."""

    def __init__(self, limit):
        super().__init__()
        self.limit = limit

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            if isinstance(value, torch.Tensor):
                assert value.untyped_storage().nbytes() < self.limit * value.element_size(), f"{func} made {value.shape}"
        return result
