"""Shapes of well-known models, with random weights: for estimates, and for speed and memory where they fit."""

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from effbench.plugin import InputError, ModelSource, hookimpl
from effbench.plugin.errors import unknown
from effbench.plugin.transformers_source import ConfigSource

_FILES = {file.stem: file for file in sorted(Path(__file__).parent.glob("*.json"))}


class Shape(ConfigSource):
    """`shape:NAME`, as `shape:llama-2-70b`: the sizes of a published model with random weights, from GPT-2 to Llama 3.1 405B.

    Each is a transformers config that says where its figures were published. What they say is what decides speed and memory;
    tokenizers and weights are not part of it.
    """

    name: ClassVar = "shape"

    def config(self) -> Path:
        """One of the files beside this one."""
        if self.argument is None:
            raise InputError(f"model shape: write shape:NAME; there are {', '.join(_FILES)}")
        if self.argument not in _FILES:
            raise unknown("shape", self.argument, _FILES)
        return _FILES[self.argument]


@hookimpl
def register_models(register: "Callable[[type[ModelSource]], None]") -> None:
    """Register the shapes."""
    register(Shape)
