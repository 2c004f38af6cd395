"""Checkpoints: what a stack writes to disk, how large that is, and how it is read again."""

import hashlib
import tempfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from effbench.plugin.technique import Context, Technique
from effbench.worker.ranks import union


class Checkpoints:
    """Sizes of the files that a stack's `store` leads to; tensors are told from the base's by content, not by name."""

    def __init__(self, techniques: Sequence[Technique]) -> None:
        self._techniques = techniques
        self._base: frozenset[bytes] = frozenset()

    def remember_base(self, model: nn.Module) -> None:
        """Add this model's tensors to what a delta is measured against."""
        self._base |= frozenset(_digest(tensor) for tensor in _unwrapped(_tensors(model)).values())

    def full_bytes(self, model: nn.Module, context: Context) -> tuple[int, int]:
        """The model as inference uses it, after every technique's `store`: as it is, and with its zeros left out."""
        tensors = own(stored(model, self._techniques, context))
        return _sum(_bytes_on_disk(tensors)), _sum(_bytes_on_disk(without_zeros(tensors)))

    def delta_bytes(self, model: nn.Module, context: Context) -> int:
        """The trained model's tensors that it did not have before training, before anything is merged or converted."""
        tensors = _unwrapped(_tensors(model))
        changed = {name: tensor for name, tensor in tensors.items() if _digest(tensor) not in self._base}
        return _sum(_bytes_on_disk(own(changed)))


def stored(model: nn.Module, techniques: Sequence[Technique], context: Context) -> dict[str, Tensor]:
    """The model's tensors after every technique's `store`, each of which must be one that safetensors can write.

    Where several ranks share a tensor it is a DTensor still: see `own`.
    """
    tensors = _tensors(model)
    for technique in techniques:
        tensors = technique.store(tensors, context)
    return _unwrapped(tensors)


def own(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of what all ranks hold, the tensors that this one writes, whole: each tensor is written by the first rank that has it.

    So a sharded model is one file of rank 0's, and a pipeline one of each stage's first rank. One tensor at a time is gathered,
    and on other ranks let go. Every rank calls it.
    """
    rank = dist.get_rank() if dist.is_initialized() else 0
    writers = union(dict.fromkeys(tensors, rank))
    mine = {}
    for name, tensor in tensors.items():
        whole = _whole(tensor)
        if writers[name] == rank:
            mine[name] = whole.cpu() if isinstance(tensor, DTensor) else whole
    return mine


def without_zeros(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Where it is smaller, a bit for each element that says whether it is zero, and the elements that are not."""
    sparse: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        flat = tensor.detach().flatten()
        values, bits = flat[flat != 0], _bits(flat != 0)
        if values.nbytes + bits.nbytes < flat.nbytes:
            sparse |= {f"{name}.values": values, f"{name}.nonzero": bits}
        else:
            sparse[name] = tensor
    return sparse


def save(tensors: dict[str, Tensor], file: Path) -> None:
    """Write what `stored` gave, or this rank's part of it."""
    save_file({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}, file)


def reload(file: Path, model: nn.Module, techniques: Sequence[Technique], context: Context) -> None:
    """Read a saved checkpoint into `model`, which went through `load`, `apply` and `infer` of the same stack untrained."""
    tensors = _wrapped(load_file(file, device=str(context.device)), model)
    for technique in reversed(techniques):
        tensors = technique.restore(tensors, model, context)
    before = model.state_dict()
    state: OrderedDict[str, Tensor] = OrderedDict(tensors)
    state._metadata = before._metadata  # type: ignore[attr-defined]  # versions, by which modules choose how they read
    _load(model, state)
    anywhere = union(dict.fromkeys(before))
    unexpected = [name for name in tensors if name not in anywhere]
    given = {_place(before[name]) for name in tensors if name in before}
    missing = [name for name, value in before.items() if name not in tensors and _place(value) not in given]
    if missing or unexpected:
        raise ValueError(f"the checkpoint and the model differ: missing {missing[:3]}, not known {unexpected[:3]}")


def _load(model: nn.Module, state: OrderedDict[str, Tensor]) -> None:
    """Not strict: shared tensors, what a module writes and `restore` put back, and layers of other ranks."""
    if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

        known: dict[str, Any] = {name: tensor for name, tensor in state.items() if name in model.state_dict()}
        set_model_state_dict(model, known, options=StateDictOptions(full_state_dict=True, strict=False))
    else:
        model.load_state_dict(state, strict=False)


def _whole(tensor: Tensor) -> Tensor:
    """All of a tensor of which each rank has a part; every rank of its mesh calls it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _sum(count: int) -> int:
    """Over all ranks."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    return sum(union({str(rank): count}).values())


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state dict's tensors, shared ones once: safetensors refuses two names for one storage."""
    seen: set[object] = set()
    kept = {}
    for name, value in model.state_dict().items():
        place = _place(value)
        if place not in seen:
            seen.add(place)
            kept[name] = value
    return kept


def _unwrapped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A tensor that wraps others (torchao's quantized ones) as those: its name and theirs, its integers and scales."""
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if is_traceable_wrapper_subclass(tensor) and not isinstance(tensor, DTensor):
            plain |= {f"{name}.{part}": getattr(tensor, part) for part in tensor.__tensor_flatten__()[0]}
        else:
            plain[name] = tensor
    return plain


def _wrapped(tensors: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The inverse, into the wrapping tensors that the model has."""
    state = dict(tensors)
    for name, value in model.state_dict().items():
        if is_traceable_wrapper_subclass(value) and not isinstance(value, DTensor):
            wrapper: Any = value
            for part in wrapper.__tensor_flatten__()[0]:
                getattr(wrapper, part).copy_(state.pop(f"{name}.{part}"))
            state[name] = wrapper
    return state


def _place(value: object) -> object:
    """Equal for tensors that share their memory; everything else is only equal to itself.

    A wrapper tensor, or an empty one, has no storage to share. Packed parameters of quantized modules are no tensors at all:
    `store` of the technique that made them writes them out.
    """
    if isinstance(value, DTensor):
        return _place(value.to_local())
    if isinstance(value, Tensor) and not value.is_quantized and value.data_ptr():
        return value.data_ptr(), value.storage_offset(), value.shape
    return _Unique()


class _Unique:
    """Equal to nothing but itself."""


def _bits(flags: Tensor) -> Tensor:
    """Eight flags to a byte."""
    return torch.from_numpy(np.packbits(flags.cpu().numpy()))


def _digest(tensor: Tensor) -> bytes:
    plain = _whole(tensor.detach()).contiguous().cpu()
    content = plain.flatten().view(torch.uint8).numpy().tobytes() if plain.numel() else b""
    return hashlib.blake2b(content, digest_size=16, person=str(plain.dtype).encode()[:16]).digest()


def _bytes_on_disk(tensors: dict[str, Tensor]) -> int:
    if not tensors:
        return 0  # of a rank that writes no file
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "checkpoint.safetensors"
        save(tensors, file)
        return file.stat().st_size
