"""Where models come from: the shipped one, a folder, a config alone, the Hugging Face Hub."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from effbench.plugin import InputError, LoadRequest, ModelFacts, ModelSource, hookimpl
from effbench.plugin.model import Tokenizer
from effbench.plugin.transformers_source import DirectorySource, byte_tokenizer, read_facts

if TYPE_CHECKING:
    from torch import nn

_WEIGHTS_SEED = 0  # random weights are the same in every trial: rounds repeat a measurement, they do not change the model


class TinyLlama(DirectorySource):
    """A byte-level Llama of 2 M parameters, trained on the text every Python carries; shipped with effbench."""

    name: ClassVar = "tiny-llama"

    def directory(self) -> Path:
        """The folder in the package."""
        import effbench.reference

        return Path(effbench.reference.__file__).parent / "tiny-llama"


class LocalFolder(DirectorySource):
    """`path:DIR`: a folder with config.json and safetensors."""

    name: ClassVar = "path"

    @property
    def label(self) -> str:
        """The folder's name alone."""
        return f"path:{Path(self.argument or '').resolve().name}"

    def directory(self) -> Path:
        """The folder that the suite names."""
        if not self.argument or not (folder := Path(self.argument)).is_dir():
            raise InputError(
                f"model path:{self.argument or ''}: no such folder; write path:DIR with a folder that has a config.json"
            )
        return folder


class Hub(DirectorySource):
    """`hf:ORG/NAME` or `hf:ORG/NAME@REVISION`: a model of the Hugging Face Hub, downloaded once."""

    name: ClassVar = "hf"
    _patterns: ClassVar = ["*.safetensors", "*.json", "tokenizer.model", "*.txt"]

    def directory(self) -> Path:
        """The local snapshot, downloaded where it is not there yet."""
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

        repository, _, revision = (self.argument or "").partition("@")
        if repository.count("/") != 1:
            raise InputError(f"model hf:{self.argument or ''}: write hf:ORG/NAME or hf:ORG/NAME@REVISION")
        try:
            return Path(snapshot_download(repository, revision=revision or None, allow_patterns=self._patterns))
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise InputError(
                f"model hf:{self.argument}: cannot be downloaded, and is not in the local cache: {reason}"
            ) from error


class RandomWeights(ModelSource):
    """`config:FILE`: random weights of a given config.json, for speed and memory alone."""

    name: ClassVar = "config"
    trained: ClassVar = False

    @property
    def label(self) -> str:
        """The file's name alone."""
        return f"config:{Path(self.argument or '').name}"

    def facts(self) -> ModelFacts:
        """Read from the file."""
        return read_facts(self._file(), self.label)

    def weights_hash(self) -> str:
        """Hash of the config: the same seed makes the same weights of it."""
        return hashlib.sha256(self._file().read_bytes()).hexdigest()[:16]

    def load(self, request: LoadRequest, seed: int) -> "nn.Module":
        """Initialise as transformers does, from a fixed seed."""
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        if request.quantization_config is not None:
            raise ValueError("random weights cannot be quantized while they are loaded")
        torch.manual_seed(_WEIGHTS_SEED)
        config = AutoConfig.from_pretrained(self._file(), trust_remote_code=self.trust_remote_code)
        model: nn.Module = AutoModelForCausalLM.from_config(
            config,
            dtype=getattr(torch, request.dtype),
            attn_implementation=request.attention,
            trust_remote_code=self.trust_remote_code,
        )
        return model.eval()

    def tokenizer(self) -> Tokenizer:
        """Bytes: which ids they are makes no difference to speed."""
        return byte_tokenizer(self.facts(), self.label)

    def _file(self) -> Path:
        if not self.argument or not (file := Path(self.argument)).is_file():
            raise InputError(
                f"model config:{self.argument or ''}: no such file; write config:FILE with a transformers config.json"
            )
        return file


@hookimpl
def register_models(register: "Callable[[type[ModelSource]], None]") -> None:
    """Register the sources of models."""
    for source in (TinyLlama, LocalFolder, Hub, RandomWeights):
        register(source)
