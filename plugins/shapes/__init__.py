"""Shapes of well-known models, with random weights: for estimates, and for speed and memory where they fit."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from effbench.plugin import InputError, LoadRequest, ModelFacts, ModelSource, hookimpl
from effbench.plugin.errors import unknown
from effbench.plugin.model import Tokenizer
from effbench.plugin.transformers_source import byte_tokenizer, from_config, read_facts, seeded

if TYPE_CHECKING:
    from torch import nn

_FILES = {file.stem: file for file in sorted(Path(__file__).parent.glob("*.json"))}
_WEIGHTS_SEED = 0  # the same weights in every trial


class Shape(ModelSource):
    """`shape:NAME`, as `shape:llama-2-70b`: the sizes of a published model with random weights, from GPT-2 to Llama 3.1 405B.

    Each is a transformers config that says where its figures were published. What they say is what decides speed and memory;
    tokenizers and weights are not part of it.
    """

    name: ClassVar = "shape"
    trained: ClassVar = False

    def facts(self) -> ModelFacts:
        """Read from the config."""
        return read_facts(self._file(), self.label)

    def weights_hash(self) -> str:
        """Hash of the config: the same seed makes the same weights of it."""
        return hashlib.sha256(self._file().read_bytes()).hexdigest()[:16]

    def load(self, request: LoadRequest, seed: int) -> "nn.Module":
        """Initialise as transformers does, from a fixed seed."""
        with seeded(_WEIGHTS_SEED):
            return from_config(self._file(), request, self.label)

    def tokenizer(self) -> Tokenizer:
        """Bytes: which ids they are makes no difference to speed."""
        return byte_tokenizer(self.facts(), self.label)

    def _file(self) -> Path:
        if self.argument is None:
            raise InputError(f"model shape: write shape:NAME; there are {', '.join(_FILES)}")
        if self.argument not in _FILES:
            raise unknown("shape", self.argument, _FILES)
        return _FILES[self.argument]


@hookimpl
def register_models(register: "Callable[[type[ModelSource]], None]") -> None:
    """Register the shapes."""
    register(Shape)
