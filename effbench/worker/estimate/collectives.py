"""What one rank sends, from the collectives that it starts."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed import distributed_c10d
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from effbench.store.footprint import Collective
from effbench.worker.estimate.fakes import PLAIN

_NAMESPACES = frozenset({"c10d", "_c10d_functional", "_c10d_functional_autograd", "_dtensor"})
_KINDS = {
    "allreduce": "all-reduce",
    "allgather": "all-gather",
    "reducescatter": "reduce-scatter",
    "alltoall": "all-to-all",
    "broadcast": "broadcast",
    "send": "send",
}
"""By what an operator's name holds once its underscores are gone."""
_SENDS_NOTHING = ("wait", "barrier", "recv", "wrap", "check", "mesh")


class Collectives(TorchDispatchMode):
    """Counts collectives, and the bytes that a rank sends in them under the usual ring algorithms.

    Of N ranks, each sends 2 (N - 1)/N · B in an all-reduce of B bytes; (N - 1)/N · B in an all-gather into B bytes, a
    reduce-scatter or an all-to-all of B bytes; B in a broadcast or a message to one rank.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch annotates only a part of its functions
        self._calls: dict[str, int] = defaultdict(int)
        self._payload: dict[str, int] = defaultdict(int)
        self._sent: dict[str, float] = defaultdict(float)
        self.unknown: str | None = None
        """The first operator of which nobody here knows what it sends."""

    def found(self) -> list[Collective] | None:
        """By kind; None where one was not known."""
        if self.unknown:
            return None
        return [Collective(kind=k, calls=n, bytes=self._payload[k], sent_bytes=self._sent[k]) for k, n in self._calls.items()]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator; count it if it is a collective."""
        if not all(kind in PLAIN for kind in types):
            return NotImplemented  # a tensor that wraps others: what it sends comes here by itself
        result = func(*args, **(kwargs or {}))
        if func.namespace in _NAMESPACES:
            self._count(func, args, kwargs or {}, result)
        return result

    def _count(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        name = func._overloadpacket.__name__.replace("_", "")
        kind = next((kind for part, kind in _KINDS.items() if part in name), None)
        if kind is None:
            if not any(part in name for part in _SENDS_NOTHING):
                self.unknown = self.unknown or str(func)
            return
        given = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
        size = _group_size(given)
        payload = max(_bytes(given.values()), _bytes([result]))  # the whole tensor, on whichever side it stands
        self._calls[kind] += 1
        self._payload[kind] += payload
        self._sent[kind] += payload * _share(kind, size)


def _share(kind: str, size: int) -> float:
    """Of the bytes of a collective's whole tensor, what each of `size` ranks sends."""
    if kind in {"broadcast", "send"}:
        return 1.0
    return (2 if kind == "all-reduce" else 1) * (size - 1) / size


def _bytes(things: Iterable[Any]) -> int:
    """Bytes of the largest, a list of tensors being one."""
    return max(map(_tensor_bytes, things), default=0)


def _tensor_bytes(thing: Any) -> int:
    return sum(leaf.numel() * leaf.element_size() for leaf in tree_leaves(thing) if isinstance(leaf, Tensor))


def _group_size(given: dict[str, Any]) -> int:
    group: Any = given.get("process_group", given.get("group_name"))
    if isinstance(group, torch.ScriptObject):
        group = distributed_c10d.ProcessGroup.unbox(group)
    resolve: Any = distributed_c10d._resolve_process_group  # type: ignore[attr-defined]  # functional collectives name theirs
    return int(resolve(group).size() if isinstance(group, str) else group.size())
