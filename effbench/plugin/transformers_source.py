"""Models in a folder as transformers saves them: config.json beside safetensors."""

import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from effbench.plugin.cell import ModelFacts
from effbench.plugin.errors import InputError
from effbench.plugin.model import LoadRequest, ModelSource, Tokenizer

if TYPE_CHECKING:
    from torch import nn

ENCODER_DECODERS = frozenset(("mt5", "t5"))
# Model types that do not predict the next token from those before it alone.
_NOT_CAUSAL = ENCODER_DECODERS | frozenset(
    (
        *("albert", "bert", "big_bird", "camembert", "convbert", "deberta-v2", "distilbert", "electra", "eurobert"),
        *("longformer", "modernbert", "mpnet", "nomic_bert", "roberta", "xlm-roberta"),
    )
)
_WEIGHTS_SEED = 0  # random weights are the same in every trial: rounds repeat a measurement, they do not change the model
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")


@dataclass(frozen=True)
class ByteTokenizer:
    """A byte is a token; the byte 0, which no text contains, opens a document."""

    start: int = 0

    def encode(self, text: str) -> list[int]:
        """The text's UTF-8 bytes."""
        return list(text.encode())


class DirectorySource(ModelSource):
    """A folder with config.json and safetensors; pickled weights are never loaded."""

    def directory(self) -> Path:
        """The folder; InputError where there is none."""
        raise NotImplementedError

    def config(self) -> Path:
        """Its config.json."""
        return self.directory() / "config.json"

    def facts(self) -> ModelFacts:
        """Read from config.json."""
        return read_facts(self.config(), self.label)

    def weights_hash(self) -> str:
        """Hash of all safetensors files."""
        digest = hashlib.sha256()
        for file in self._weights():
            with file.open("rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
        return digest.hexdigest()[:16]

    def load(self, request: LoadRequest, seed: int) -> "nn.Module":
        """Load with transformers, from this folder alone."""
        if not request.weights:
            return from_config(self.config(), request, self.label, trust_remote_code=self.trust_remote_code)
        self._weights()
        with seeded(seed):
            model: nn.Module = _auto_class(self.facts()).from_pretrained(
                self.directory(), local_files_only=True, use_safetensors=True, **self._keywords(request)
            )
        return model.eval()

    def tokenizer(self) -> Tokenizer:
        """The folder's own tokenizer, or bytes where it has none and 256 ids are enough."""
        folder = self.directory()
        if any((folder / name).exists() for name in _TOKENIZER_FILES):
            return _load_tokenizer(folder, self.label, trust_remote_code=self.trust_remote_code)
        return byte_tokenizer(self.facts(), self.label)

    def _weights(self) -> list[Path]:
        folder = self.directory()
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise InputError(
                f"{self.label}: no .safetensors file in the folder; other weight formats are not loaded, they can run code"
            )
        return files

    def _keywords(self, request: LoadRequest) -> dict[str, Any]:
        import torch

        keywords: dict[str, Any] = {"dtype": getattr(torch, request.dtype), "attn_implementation": request.attention}
        if request.quantization_config is not None:
            keywords["quantization_config"] = request.quantization_config
        return keywords | {"trust_remote_code": self.trust_remote_code} | request.options


class ConfigSource(ModelSource):
    """Random weights of a transformers config, for speed and memory alone."""

    trained: ClassVar = False

    @abstractmethod
    def config(self) -> Path:
        """The config's file. InputError with one clear line if there is none."""

    def facts(self) -> ModelFacts:
        """Read from the config."""
        return read_facts(self.config(), self.label)

    def weights_hash(self) -> str:
        """Hash of the config: the same seed makes the same weights of it."""
        return hashlib.sha256(self.config().read_bytes()).hexdigest()[:16]

    def load(self, request: LoadRequest, seed: int) -> "nn.Module":
        """Initialise as transformers does, from a fixed seed."""
        with seeded(_WEIGHTS_SEED):
            return from_config(self.config(), request, self.label, trust_remote_code=self.trust_remote_code)

    def tokenizer(self) -> Tokenizer:
        """Bytes: which ids they are makes no difference to speed."""
        return byte_tokenizer(self.facts(), self.label)


def from_config(file: Path, request: LoadRequest, label: str, *, trust_remote_code: bool = False) -> "nn.Module":
    """A model of new weights, drawn as transformers draws them from the generator as it stands."""
    import torch
    from transformers import AutoConfig

    if request.quantization_config is not None:
        raise InputError(f"model {label}: random weights cannot be quantized while they are loaded")
    model: nn.Module = _auto_class(read_facts(file, label)).from_config(
        AutoConfig.from_pretrained(file, trust_remote_code=trust_remote_code),
        dtype=getattr(torch, request.dtype),
        attn_implementation=request.attention,
        trust_remote_code=trust_remote_code,
        **request.options,
    )
    return model.eval()


def _auto_class(facts: ModelFacts) -> Any:
    import transformers

    head = "CausalLM" if facts.causal else "Seq2SeqLM" if facts.model_type in ENCODER_DECODERS else "MaskedLM"
    return getattr(transformers, f"AutoModelFor{head}")


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw weights from this seed, and leave the CPU's generator as it was: a second load in mid-trial changes nothing."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def byte_tokenizer(facts: ModelFacts, label: str) -> Tokenizer:
    """Bytes as tokens; InputError where the vocabulary is too small."""
    if facts.vocab < 256:
        raise InputError(f"{label}: no tokenizer files, and a vocabulary of {facts.vocab} is too small for bytes (256)")
    return ByteTokenizer()


def read_facts(file: Path, label: str) -> ModelFacts:
    """A model's shape from its config.json, under the names that different families give it."""
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(
            f"{label}: no {file.name} there; a model is a folder with config.json and .safetensors files"
        ) from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{label}: {file.name} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise InputError(f"{label}: {file.name} holds no object")
    if not config.get("model_type"):
        raise InputError(f"{label}: {file.name} names no model_type")

    def first(*names: str, default: int | None = None) -> int:
        for name in names:
            if isinstance(config.get(name), int):
                return int(config[name])
        if default is None:
            raise InputError(f"{label}: {file.name} has none of {', '.join(names)}")
        return default

    hidden = first("hidden_size", "n_embd", "d_model")
    heads = first("num_attention_heads", "n_head", "num_heads")
    return ModelFacts(
        model_type=str(config["model_type"]),
        causal=config["model_type"] not in _NOT_CAUSAL or bool(config.get("is_decoder")),
        layers=first("num_hidden_layers", "n_layer", "num_layers"),
        hidden=hidden,
        heads=heads,
        kv_heads=first("num_key_value_heads", default=heads),
        intermediate=first("intermediate_size", "n_inner", "d_ff", default=4 * hidden),
        vocab=first("vocab_size"),
        context=first("max_position_embeddings", "n_positions", "n_ctx", default=2**31 - 1),
    )


@dataclass(frozen=True)
class _LibraryTokenizer:
    inner: Any
    start: int

    def encode(self, text: str) -> list[int]:
        return list(self.inner.encode(text, add_special_tokens=False, verbose=False))  # long texts are cut later


def _load_tokenizer(folder: Path, label: str, *, trust_remote_code: bool) -> Tokenizer:
    from transformers import AutoTokenizer

    try:
        inner = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, ImportError) as error:
        raise InputError(f"{label}: the tokenizer cannot be loaded: {str(error).strip().partition(chr(10))[0]}") from error
    candidates = (inner.bos_token_id, inner.cls_token_id, inner.eos_token_id)
    return _LibraryTokenizer(inner, next((token for token in candidates if token is not None), 0))
