"""Bytes on disk: what a checkpoint of this model takes, written for real and measured."""

import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from effbench.plugin.technique import Context, Technique


class Checkpoints:
    """Sizes of the files that a stack's `store` leads to; tensors are told from the base's by content, not by name."""

    def __init__(self, techniques: Sequence[Technique]) -> None:
        self._techniques = techniques
        self._base: frozenset[bytes] = frozenset()

    def remember_base(self, model: nn.Module) -> None:
        """Add this model's tensors to what a delta is measured against."""
        self._base |= frozenset(_digest(tensor) for tensor in _unwrapped(_tensors(model)).values())

    def full_bytes(self, model: nn.Module, context: Context) -> int:
        """The model as inference uses it, after every technique's `store`."""
        tensors = _tensors(model)
        for technique in self._techniques:
            tensors = technique.store(tensors, context)
        return _bytes_on_disk(_unwrapped(tensors))

    def delta_bytes(self, model: nn.Module, context: Context) -> int:
        """The trained model's tensors that it did not have before training, before anything is merged or converted."""
        tensors = _unwrapped(_tensors(model))
        return _bytes_on_disk({name: tensor for name, tensor in tensors.items() if _digest(tensor) not in self._base})


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state dict's tensors, shared ones once: safetensors refuses two names for one storage."""
    seen: set[tuple[object, ...]] = set()
    kept = {}
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor) and not value.is_quantized:
            key = (value.data_ptr(), value.storage_offset(), value.shape)
            if key not in seen or not value.data_ptr():  # a wrapper tensor, or an empty one, has no storage to share
                seen.add(key)
                kept[name] = value
        else:  # packed parameters of quantized modules: `store` of the technique that made them writes them out
            kept[name] = value
    return kept


def _unwrapped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A tensor that wraps others (torchao's quantized ones) as those: its name and theirs, its integers and scales."""
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if is_traceable_wrapper_subclass(tensor):
            plain |= {f"{name}.{part}": getattr(tensor, part) for part in tensor.__tensor_flatten__()[0]}
        else:
            plain[name] = tensor
    return plain


def _digest(tensor: Tensor) -> bytes:
    plain = tensor.detach().contiguous().cpu()
    content = plain.flatten().view(torch.uint8).numpy().tobytes() if plain.numel() else b""
    return hashlib.blake2b(content, digest_size=16, person=str(plain.dtype).encode()[:16]).digest()


def _bytes_on_disk(tensors: dict[str, Tensor]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "checkpoint.safetensors"
        save_file({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}, file)
        return file.stat().st_size
