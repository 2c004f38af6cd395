"""Which memory is alive, and when there was most of it."""

import weakref
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves

from effbench.worker.estimate.fakes import PLAIN


class Storages(TorchDispatchMode):
    """Follows every storage from the operator that made it to its end, by weak references.

    PyTorch's own `MemTracker` follows modules too, and so refuses one that is called twice in a step, as under gradient
    accumulation; and for sharded models there is another one.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch annotates only a part of its functions
        self.live = 0
        self.peak = 0
        self._now = self._peak_at = self._started_at = 0
        self._alive: dict[int, tuple[weakref.ref[UntypedStorage], int, int]] = {}  # by address: itself, its bytes, its birth

    def restart(self) -> None:
        """Look for the peak from here on."""
        self.peak, self._peak_at, self._started_at = self.live, self._now, self._now

    def bytes_at_start(self, tensors: Iterable[Tensor]) -> int:
        """How much of what these hold now was there when the look for the peak began."""
        return self._born_by(tensors, self._started_at)

    def bytes_at_peak(self, tensors: Iterable[Tensor]) -> int:
        """How much of what these hold now was there at the peak."""
        return self._born_by(tensors, self._peak_at)

    def _born_by(self, tensors: Iterable[Tensor], time: int) -> int:
        births = ((self._alive.get(key), size) for key, size in storages(tensors).items())
        return sum(size for known, size in births if known and known[2] <= time)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator; see what it made."""
        if not all(kind in PLAIN for kind in types):
            return NotImplemented  # a tensor that wraps others: these come here by themselves
        result = func(*args, **(kwargs or {}))
        self._now += 1
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.layout is torch.strided:
                self._see(leaf.untyped_storage())
        return result

    def _see(self, storage: UntypedStorage) -> None:
        if storage._cdata not in self._alive:
            end = partial(self._forget, storage._cdata)
            self._alive[storage._cdata] = weakref.ref(storage, end), storage.nbytes(), self._now
            self._grow(storage.nbytes())

    def _grow(self, size: int) -> None:
        self.live += size
        if self.live > self.peak:
            self.peak, self._peak_at = self.live, self._now

    def _forget(self, key: int, _: object) -> None:
        self.live -= self._alive.pop(key)[1]

    def __enter__(self) -> "Storages":
        """Also follow storages that are resized: sharded weights come and go like this."""
        self._resize = UntypedStorage.resize_
        tracker = self

        def resize_(storage: UntypedStorage, size: int) -> UntypedStorage:
            resized = tracker._resize(storage, size)
            tracker._resized(storage)
            return resized

        UntypedStorage.resize_ = resize_  # type: ignore[method-assign]  # no operator is dispatched for it
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """Follow no more."""
        UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]  # as above
        super().__exit__(*error)

    def _resized(self, storage: UntypedStorage) -> None:
        if (known := self._alive.get(storage._cdata)) is not None:
            reference, before, birth = known
            self._alive[storage._cdata] = reference, storage.nbytes(), birth
            self._grow(storage.nbytes() - before)


def storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Bytes of the storages behind these, by address: of tensors that wrap others, the storages of those."""
    found: dict[int, int] = {}
    for tensor in tensors:
        if is_traceable_wrapper_subclass(tensor) and type(tensor) not in PLAIN:
            parts = (getattr(tensor, name) for name in tensor.__tensor_flatten__()[0])
            found |= storages(part for part in parts if isinstance(part, Tensor))  # a mesh is named among them
        elif tensor.layout is torch.strided:
            storage = tensor.untyped_storage()
            found[storage._cdata] = storage.nbytes()
    return found


def held_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages behind these; what is shared counts once."""
    return sum(storages(tensors).values())
