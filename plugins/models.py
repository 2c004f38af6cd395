"""Where models come from: the shipped one, a folder, a config alone, the Hugging Face Hub."""

import hashlib
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from effbench.plugin import InputError, ModelSource, hookimpl
from effbench.plugin.transformers_source import ConfigSource, DirectorySource

if TYPE_CHECKING:
    pass


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

    def config(self) -> Path:
        """Downloaded alone, for the model's facts."""
        return self._config

    def weights_hash(self) -> str:
        """Hash of the commit. The weights are downloaded here, before any trial whose time a download would spoil."""
        self._weights()
        return hashlib.sha256(f"{self._repository}@{self._commit}".encode()).hexdigest()[:16]

    def directory(self) -> Path:
        """The local snapshot, downloaded where it is not there yet."""
        return self._snapshot

    @cached_property
    def _snapshot(self) -> Path:
        from huggingface_hub import snapshot_download

        # Folders hold copies in other formats; "consolidated" files are the same weights once more.
        wanted = ["*.safetensors", "*.json", "*.txt", "*.model", *(["*.py"] if self.trust_remote_code else [])]
        ignored = ["*/*", "consolidated*"]
        return self._fetched(snapshot_download, allow_patterns=wanted, ignore_patterns=ignored, revision=self._commit)

    @cached_property
    def _config(self) -> Path:
        from huggingface_hub import hf_hub_download

        revision = (self.argument or "").partition("@")[2]
        return self._fetched(hf_hub_download, filename="config.json", revision=revision or None)

    @property
    def _commit(self) -> str:
        return self._config.parent.name  # the cache is laid out as snapshots/COMMIT/FILE

    @property
    def _repository(self) -> str:
        repository = (self.argument or "").partition("@")[0]
        if repository.count("/") != 1:
            raise InputError(f"model hf:{self.argument or ''}: write hf:ORG/NAME or hf:ORG/NAME@REVISION")
        return repository

    def _fetched(self, download: Callable[..., str], **what: Any) -> Path:
        from huggingface_hub.errors import EntryNotFoundError

        try:
            return Path(download(self._repository, **what))
        except InputError:
            raise
        except (OSError, ValueError, EntryNotFoundError) as error:  # the Hub's own errors are kinds of these
            reason = str(error).strip().partition("\n")[0]
            raise InputError(f"model {self.label}: cannot be downloaded, and is not in the local cache: {reason}") from error


class RandomWeights(ConfigSource):
    """`config:FILE`: random weights of a given config.json, for speed and memory alone."""

    name: ClassVar = "config"

    @property
    def label(self) -> str:
        """The file's name alone."""
        return f"config:{Path(self.argument or '').name}"

    def config(self) -> Path:
        """The file that was given."""
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
