"""Checkpoints: what a stack writes to disk, how large that is, and how it is read again."""

import hashlib
import tempfile
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from effbench.plugin.technique import Context, Technique


class Checkpoints:
    """Sizes of the files that a stack's `store` leads to; tensors are told from the base's by content, not by name."""

    def __init__(self, techniques: Sequence[Technique]) -> None:
        self._techniques = techniques
        self._base: frozenset[bytes] = frozenset()

    def remember_base(self, model: nn.Module) -> None:
        """Take the loaded model as what a delta is measured against."""
        self._base = frozenset(_digest(tensor) for tensor in _tensors(model).values())

    def full_bytes(self, model: nn.Module, context: Context) -> int:
        """The model as inference uses it, after every technique's `store`."""
        return _bytes_on_disk(stored(model, self._techniques, context))

    def delta_bytes(self, model: nn.Module, context: Context) -> int:
        """The trained model's tensors that the base does not have, before anything is merged or converted."""
        return _bytes_on_disk({name: t for name, t in _tensors(model).items() if _digest(t) not in self._base})


def stored(model: nn.Module, techniques: Sequence[Technique], context: Context) -> dict[str, Tensor]:
    """The model's tensors after every technique's `store`, each of which must be one that safetensors can write."""
    tensors = _tensors(model)
    for technique in techniques:
        tensors = technique.store(tensors, context)
    return tensors


def save(tensors: dict[str, Tensor], file: Path) -> None:
    """Write what `stored` gave."""
    save_file({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}, file)


def reload(file: Path, model: nn.Module, techniques: Sequence[Technique], context: Context) -> None:
    """Read a saved checkpoint into `model`, which went through `load`, `apply` and `infer` of the same stack untrained."""
    tensors = load_file(file, device=str(context.device))
    for technique in reversed(techniques):
        tensors = technique.restore(tensors, model, context)
    before = model.state_dict()
    state: OrderedDict[str, Tensor] = OrderedDict(tensors)
    state._metadata = before._metadata  # type: ignore[attr-defined]  # versions, by which modules choose how they read
    unexpected = model.load_state_dict(state, strict=False).unexpected_keys
    given = {_place(before[name]) for name in tensors if name in before}
    missing = [name for name, value in before.items() if name not in tensors and _place(value) not in given]
    if missing or unexpected:
        raise ValueError(f"the checkpoint and the model differ: missing {missing[:3]}, not known {unexpected[:3]}")


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


def _place(value: object) -> object:
    """Equal for tensors that share their memory; everything else is only equal to itself.

    A wrapper tensor, or an empty one, has no storage to share. Packed parameters of quantized modules are no tensors at all:
    `store` of the technique that made them writes them out.
    """
    if isinstance(value, Tensor) and not value.is_quantized and value.data_ptr():
        return value.data_ptr(), value.storage_offset(), value.shape
    return _Unique()


class _Unique:
    """Equal to nothing but itself."""


def _digest(tensor: Tensor) -> bytes:
    plain = tensor.detach().contiguous().cpu()
    content = plain.flatten().view(torch.uint8).numpy().tobytes() if plain.numel() else b""
    return hashlib.blake2b(content, digest_size=16, person=str(plain.dtype).encode()[:16]).digest()


def _bytes_on_disk(tensors: dict[str, Tensor]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "checkpoint.safetensors"
        save(tensors, file)
        return file.stat().st_size
