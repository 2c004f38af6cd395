"""Counts the floating-point operations of matrix products as they are dispatched."""

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

_OWN = frozenset({"aten", "prim", "prims", "c10d", "_c10d_functional", "fsdp", "profiler"})
"""Namespaces whose operators are PyTorch's: those that multiply matrices are known by name."""
_PRODUCTS = frozenset({"mm", "bmm", "matmul", "mkldnn", "linear", "attention", "convolution", "lstm", "gru", "rnn", "gemm"})
_CONVERSIONS = ("quantize", "qparams")
_SPARSE = frozenset({torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc})
"""Layouts whose products depend on what is stored, which no formula of shapes knows."""


class UncountableError(Exception):
    """An operator whose work nobody here knows."""


class FlopCounter(TorchDispatchMode):
    """Adds up matrix products, a multiply-add as two operations, by the number type they are computed in.

    PyTorch's own table of formulas (`torch.utils.flop_counter`), and formulas for what it lacks: attention on the CPU, int8
    linear layers, products with a vector. Attention counts as dense, causal or not, and its backward pass as twice the forward:
    that its kernels recompute the scores is their affair, so every implementation of it has one count.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch annotates only a part of its functions
        self.by_dtype: dict[str, int] = defaultdict(int)
        self._whole: set[Any] = set()  # operators that are not made of others
        self.unknown: str | None = None
        """The first operator that may multiply matrices and has no formula: the sum is then too small."""

    @property
    def total(self) -> int:
        """All types together."""
        return sum(self.by_dtype.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator; count it."""
        kwargs = kwargs or {}
        if isinstance(func, torch._ops.HigherOrderOperator):
            raise UncountableError(str(func))  # at once: uncompiled FlexAttention would build the whole matrix of scores
        if any(kind not in {Tensor, FakeTensor} for kind in types):
            return NotImplemented  # a tensor that wraps others (sharded, quantized): count what it does with them
        if func.namespace == "prim":  # a fake tensor is asked for its device
            return func(*args, **kwargs)
        formula = _FORMULAS.get(func._overloadpacket) or flop_registry.get(func._overloadpacket)
        if formula is None and func not in self._whole:
            with self:
                parts = func.decompose(*args, **kwargs)  # under inference_mode composite operators come whole
            if parts is not NotImplemented:
                return parts
            self._whole.add(func)
        result = func(*args, **kwargs)
        if formula is not None and not any(isinstance(arg, Tensor) and arg.layout in _SPARSE for arg in args):
            self.by_dtype[_dtype(func, args)] += formula(*args, **kwargs, out_val=result)
        elif self.unknown is None and (formula is not None or _may_multiply(func)):
            self.unknown = str(func)
        return result


@contextmanager
def counting() -> Iterator[FlopCounter]:
    """Count what runs inside, on this thread and in the backward passes it starts; compiled functions run uncompiled."""
    compiled = "torch._dynamo" in sys.modules  # not imported: nothing is compiled, and importing it takes seconds
    with torch.compiler.set_stance("force_eager") if compiled else nullcontext(), FlopCounter() as counter:
        yield counter


def _dtype(func: Any, args: Any) -> str:
    if func.namespace == "quantized":
        return "int8"  # whatever goes in: these quantize it first
    tensors = [arg for arg in args if isinstance(arg, Tensor)]
    return str(tensors[-1].dtype).removeprefix("torch.")


def _may_multiply(func: Any) -> bool:
    name = func._overloadpacket.__name__
    if func.namespace in _OWN:
        return not _PRODUCTS.isdisjoint(name.split("_"))
    return not any(word in name for word in _CONVERSIONS)


def _linear(x: Tensor, *_: Any, out_val: Tensor, **__: Any) -> int:
    """Count x · Wᵀ, however the weights are packed: every output is a sum over the inputs."""
    return 2 * prod(x.shape) * out_val.shape[-1]


def _matmul(a: Tensor, *_: Any, out_val: Tensor, **__: Any) -> int:
    return 2 * a.shape[-1] * prod(out_val.shape)


def _matrix_first(a: Tensor, b: Tensor, *_: Any, out_val: Any, **__: Any) -> int:
    return 2 * prod(a.shape) * (b.shape[-1] if b.dim() > 1 else 1)


def _matrix_second(_: Tensor, a: Tensor, b: Tensor, *__: Any, out_val: Any, **___: Any) -> int:
    return 2 * prod(a.shape) * (b.shape[-1] if b.dim() > 1 else 1)


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, out_val: Any, **__: Any) -> int:
    """q·kᵀ and scores·v, over the query's heads: grouped keys and values are used once by each."""
    return 2 * prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1])


def _attention_backward(_: Tensor, query: Tensor, key: Tensor, value: Tensor, *__: Any, out_val: Any, **___: Any) -> int:
    return 2 * _attention(query, key, value, out_val=None)


def _formulas() -> dict[Any, Callable[..., int]]:
    """By operator; names that this version of PyTorch does not have are left out."""
    kinds = ("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention")
    attention = [f"_scaled_dot_product_{kind}" for kind in kinds]
    named: list[tuple[Any, list[str], Callable[..., int]]] = [
        # Whole where nothing asks for gradients, as under inference_mode; otherwise autograd sees their parts.
        (torch.ops.aten, ["linear"], _linear),
        (torch.ops.aten, ["matmul"], _matmul),
        (torch.ops.aten, ["scaled_dot_product_attention", *attention], _attention),
        (torch.ops.aten, [f"{name}_backward" for name in attention], _attention_backward),
        (torch.ops.aten, ["mv", "_int_mm"], _matrix_first),
        (torch.ops.aten, ["addmv"], _matrix_second),
        (torch.ops.aten, ["_weight_int8pack_mm", "_weight_int4pack_mm", "_weight_int4pack_mm_for_cpu"], _linear),
        (torch.ops.quantized, ["linear_dynamic", "linear_relu_dynamic"], _linear),
    ]
    return {getattr(space, name): formula for space, names, formula in named for name in names if hasattr(space, name)}


_FORMULAS = _formulas()
