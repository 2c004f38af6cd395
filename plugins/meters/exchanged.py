"""Counting what one rank hands to others."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.distributed import ProcessGroup
from torch.utils._python_dispatch import TorchDispatchMode

_PAYLOAD = {
    "_allgather_base_": 1,
    "_reduce_scatter_base_": 1,
    "allgather_": 1,
    "allgather_coalesced_": 1,
    "allgather_into_tensor_coalesced_": 1,
    "allreduce_": 0,
    "allreduce_coalesced_": 0,
    "alltoall_": 1,
    "alltoall_base_": 1,
    "broadcast_": 0,
    "gather_": 1,
    "reduce_": 0,
    "reduce_scatter_": 1,
    "reduce_scatter_tensor_coalesced_": 1,
    "scatter_": 1,
    "send": 0,
}
"""c10d's operators, and the place of the argument that goes in."""
_ROOTED = {"broadcast_": 2, "scatter_": 3}
"""Where only one rank gives something: the place of its number."""
_FUNCTIONAL = frozenset(("all_gather_into_tensor", "all_reduce", "all_to_all_single", "isend", "reduce_scatter_tensor"))
"""The operators that DTensor uses, without their variants; what goes in is the first argument."""
_NOTHING = frozenset(
    ("barrier", "monitored_barrier_", "recv_", "recv_any_source_", "irecv", "wait_tensor", "_wrap_tensor_autograd")
)


class Exchanged(TorchDispatchMode):
    """Adds up the bytes of tensors that go into collectives and sends.

    DistributedDataParallel's reducer and FSDP call the same operators from C++, so that they are seen too.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it without types
        self.total = 0
        self.unknown: set[str] = set()
        """Operators of which it is not known what they hand over."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        namespace, _, name = func._schema.name.partition("::")
        if namespace in ("c10d", "_c10d_functional") and name not in _NOTHING:
            given = _of_c10d(name, args) if namespace == "c10d" else _of_functional(name, args)
            if given is None:
                self.unknown.add(name)
            else:
                self.total += sum(tensor.nbytes for tensor in _tensors(given))
        return func(*args, **(kwargs or {}))


def _of_c10d(name: str, args: tuple[Any, ...]) -> Any:
    """The tensors that this rank gives; None where that is not known."""
    if name in _ROOTED and ProcessGroup.unbox(args[_ROOTED[name] - 1]).rank() != args[_ROOTED[name]]:
        return []
    return args[_PAYLOAD[name]] if name in _PAYLOAD else None


def _of_functional(name: str, args: tuple[Any, ...]) -> Any:
    return args[0] if name.removesuffix("_").removesuffix("_out").removesuffix("_coalesced") in _FUNCTIONAL else None


def _tensors(argument: Tensor | Sequence[Any]) -> Iterator[Tensor]:
    if isinstance(argument, Tensor):
        yield argument
    else:
        for item in argument:
            yield from _tensors(item)
