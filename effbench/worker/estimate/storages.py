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
        self._now = 0
        self._grown: list[tuple[int, int]] = []  # when there was more, and how much there was then
        self._alive: dict[int, tuple[weakref.ref[UntypedStorage], int, int]] = {}  # by address: itself, its bytes, its birth

    def restart(self) -> None:
        """Look for the peak from here on."""
        self._grown = [(self._now, self.live)]

    @property
    def peak(self) -> int:
        """The most that was alive at once."""
        return max(live for _, live in self._grown)

    def held_at_start(self, tensors: Iterable[Tensor]) -> int:
        """How much of what these hold now was there when the look for the peak began."""
        births = self._births(tensors)
        return sum(size for born, size in births if born <= self._grown[0][0])

    def peak_beside(self, tensors: Iterable[Tensor]) -> int:
        """The most that was alive at once of everything but what these hold now."""
        coming, there, most = sorted(self._births(tensors), reverse=True), 0, 0
        for time, live in self._grown:
            while coming and coming[-1][0] <= time:
                there += coming.pop()[1]
            most = max(most, live - there)
        return most

    def _births(self, tensors: Iterable[Tensor]) -> list[tuple[int, int]]:
        """When what these hold was made, and its bytes."""
        return [(self._alive[key][2], size) for key, size in storages(tensors).items() if key in self._alive]

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
        if size > 0:
            self._grown.append((self._now, self.live))

    def _forget(self, key: int, _: object) -> None:
        self.live -= self._alive.pop(key)[1]

    def __enter__(self) -> "Storages":
        """Also follow storages that are resized: sharded weights come and go like this."""
        self._resize: Any = UntypedStorage.resize_

        def resize_(storage: UntypedStorage, size: int) -> Any:
            resized = self._resize(storage, size)
            self._resized(storage)
            return resized

        # No operator is dispatched for it.
        UntypedStorage.resize_ = resize_  # type: ignore[method-assign, assignment]  # for as long as this mode is on
        super().__enter__()  # type: ignore[no-untyped-call]  # as in __init__
        return self

    def __exit__(self, *error: Any) -> None:
        """Follow no more."""
        UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]  # as above
        super().__exit__(*error)  # type: ignore[no-untyped-call]  # as above

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
