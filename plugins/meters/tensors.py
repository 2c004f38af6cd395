"""Bytes of the tensors that a thing holds."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any


def model_bytes(model: Any) -> int:
    """Bytes of a model's tensors as they are stored: quantized layers packed, of sharded ones this rank's part."""
    return stored_bytes([model.state_dict(keep_vars=True), list(model.buffers())])


def stored_bytes(thing: Any) -> int:
    """Bytes of every tensor in `thing`: a tensor, or containers and plain objects of them. Memory that is shared counts once.

    Tensors that wrap others (quantized, sharded) count as those. Of a storage counts what its tensors use of it, at most all
    of it: neither a view into a large file nor an expanded tensor counts for more than it is.
    """
    storages: dict[int, tuple[int, dict[tuple[Any, ...], int]]] = {}
    for tensor in _plain_tensors(thing, set()):
        storage = tensor.untyped_storage()
        _, views = storages.setdefault(storage.data_ptr(), (storage.nbytes(), {}))
        views[tensor.data_ptr(), tuple(tensor.shape), tensor.dtype] = tensor.numel() * tensor.element_size()
    return sum(min(size, sum(views.values())) for size, views in storages.values())


def _plain_tensors(thing: Any, seen: set[int]) -> Iterator[Any]:
    """The tensors of memory behind `thing`."""
    import torch

    if id(thing) in seen:
        return
    seen.add(id(thing))
    parts = _parts_of_tensor(thing) if isinstance(thing, torch.Tensor) else _parts_of_object(thing)
    if parts is None:
        yield thing
    for part in list(parts or ()):
        yield from _plain_tensors(part, seen)


def _parts_of_tensor(tensor: Any) -> Iterable[Any] | None:
    """What a tensor is made of; None for one that is memory itself."""
    import torch
    from torch.utils._python_dispatch import is_traceable_wrapper_subclass

    if is_traceable_wrapper_subclass(tensor):
        return [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]
    if tensor.layout is torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    return () if tensor.device.type == "meta" else None


def _parts_of_object(thing: Any) -> Iterable[Any]:
    """Members of a container, or attributes of an object that only holds data."""
    from torch import nn

    if isinstance(thing, Mapping):
        return thing.values()
    if isinstance(thing, list | tuple | set | frozenset):
        return thing
    return () if isinstance(thing, nn.Module) or callable(thing) else getattr(thing, "__dict__", {}).values()
