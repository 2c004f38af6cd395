"""Where models come from. A suite names one as `name` or `name:argument`."""

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from effbench.plugin.cell import ModelFacts
from effbench.plugin.errors import InputError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class LoadRequest:
    """How to load a model, before any weight exists; techniques change it with `dataclasses.replace`."""

    dtype: str
    attention: str = "sdpa"
    quantization_config: Any = None
    host: bool = False
    """Whether weights stay in the host's memory until `apply`, where a technique moves this rank's part to the device."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further keyword arguments of transformers' `from_pretrained`."""
    weights: bool = True
    """False: only shapes matter (`effbench estimate`), nothing needs to be read or downloaded but the config."""


class Tokenizer(Protocol):
    """Text to token ids."""

    @property
    def start(self) -> int:
        """The id that opens a document."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of the text, without special tokens."""
        ...


class ModelSource(ABC):
    """A model that can be loaded again and again, always the same."""

    name: ClassVar[str]
    trained: ClassVar[bool] = True
    """False for random weights: quality is then not applicable, unless the model is trained `from_scratch`."""
    from_scratch: ClassVar[bool] = False
    """Random weights, drawn anew in each round, that a suite's training is meant to teach all they will know."""

    def __init__(self, argument: str | None = None, *, trust_remote_code: bool = False) -> None:
        self.argument = argument
        self.trust_remote_code = trust_remote_code

    @property
    def label(self) -> str:
        """What records call this model. A source whose argument is a path leaves the folders out."""
        return self.name if self.argument is None else f"{self.name}:{self.argument}"

    def sizes(self, *names: str, default: str) -> list[int]:
        """The argument's whole numbers, one for each name and an × between them: `4x64`."""
        numbers = (default if self.argument is None else self.argument).split("x")
        if len(numbers) != len(names) or not all(re.fullmatch("[1-9][0-9]*", number, re.ASCII) for number in numbers):
            form = "x".join(names)
            raise InputError(
                f"model {self.label}: write {self.name}:{form} with whole numbers from 1, as {self.name}:{default}"
            )
        return [int(number) for number in numbers]

    @abstractmethod
    def facts(self) -> ModelFacts:
        """Read from config.json, without torch. ValueError with one clear line if there is no such model."""

    @abstractmethod
    def weights_hash(self) -> str:
        """A hash that changes when the weights do, without torch."""

    @abstractmethod
    def load(self, request: LoadRequest, seed: int) -> "nn.Module":
        """The model on the CPU, in evaluation mode. `seed` makes weights that the source does not have."""

    @abstractmethod
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that belongs to the weights."""
