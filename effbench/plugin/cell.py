"""A cell: one point of a suite, everything a trial needs to know about what it measures."""

import hashlib
import json
import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Phase = Literal["load", "apply", "train", "convert", "infer"]
"""convert is the part of infer in which techniques merge and convert, before anything is timed."""

Allocator = Literal["default", "keep", "release"]


class ModelFacts(BaseModel):
    """What a model's config.json says, read without torch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model_type: str
    causal: bool
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab: int
    context: int

    @property
    def approximate_parameters(self) -> int:
        """Weights of a decoder of this shape (embeddings once), for estimates before anything is loaded.

        A config does not say whether the feed-forward layer is gated, of three matrices; of two, it is four times as wide.
        """
        attention = self.hidden * self.hidden * (2 + 2 * self.kv_heads / self.heads)
        matrices = 2 if self.intermediate == 4 * self.hidden else 3
        return round(self.layers * (attention + matrices * self.hidden * self.intermediate) + self.vocab * self.hidden)


class Sampling(BaseModel):
    """When a trial has sampled enough: all three floors are met, or the cap is reached."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_samples: int = Field(default=10, ge=2)
    min_seconds: float = Field(default=0.5, ge=0)
    interval: float = Field(default=0.02, gt=0)
    """Half-width of the median's 95 % interval, relative to the median."""
    max_seconds: float = Field(default=10.0, gt=0)
    """Per timed action; beats the floors."""
    flush_l2: bool = False
    """CUDA: empty the L2 cache before each prefill and decode loop, so that none finds its weights there."""


class Cell(BaseModel):
    """Stack × model × workload × axes, with the settings that training and inference need."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    suite: str
    stack: str
    techniques: tuple[tuple[str, dict[str, Any]], ...]
    """(name, options) in the suite's order; options as given, validated by the technique's class."""
    model: str
    facts: ModelFacts
    workload: str
    seq_len: int
    """Tokens per sequence in training and prefill, the same for every technique; virtual tokens come on top."""
    batch_size: int
    """Sequences per step over all ranks."""
    world_size: int = 1
    data_ranks: int = 1
    """Over how many ranks the batch is split."""
    parallel: dict[str, int] = Field(default={}, exclude_if=lambda parallel: not parallel)
    """Parallel techniques of the stack, and over how many ranks each spreads."""
    scaling: Literal["strong", "weak"] = "strong"
    """Whether batch_size stays the same at every world size, or grows with data_ranks."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: Literal["cpu", "cuda"] = "cpu"
    threads: int = 1
    allocator: Allocator = Field(default="default", exclude_if=lambda allocator: allocator == "default")
    """Whether malloc returns freed memory to the kernel as it likes, never, or at once. Left out at its default: so are ids."""
    phases: tuple[Literal["train", "infer"], ...]
    steps: int
    lr: float
    new_tokens: int
    quality_documents: int
    sampling: Sampling = Sampling()
    option_axes: dict[str, Any] = {}
    """Values of axes such as `lora.rank` that this cell stands at."""

    @property
    def id(self) -> str:
        """A readable slug and 8 hex digits of the canonical JSON: unique, stable, and safe as a file name."""
        options = [f"{key.rpartition('.')[2]}{value}" for key, value in sorted(self.option_axes.items())]
        parts = [self.suite, self.stack, self.model, self.workload, f"s{self.seq_len}", f"b{self.batch_size}", *options]
        if self.world_size > 1:
            parts.append(f"w{self.world_size}")
        slug = re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")[:120]
        return f"{slug}-{hashlib.sha256(canonical_json(self.model_dump(mode='json')).encode()).hexdigest()[:8]}"

    @property
    def value_bytes(self) -> int:
        """Of one weight or activation of the untouched model."""
        return 4 if self.dtype == "float32" else 2

    @property
    def decode_steps(self) -> int:
        """Steps after the first token, which prefill gives; none of a model that does not predict the next token."""
        return self.new_tokens - 1 if self.facts.causal else 0

    @property
    def weight_bytes(self) -> int:
        """Of all weights of the untouched model, about."""
        return self.facts.approximate_parameters * self.value_bytes

    @property
    def paired_batch(self) -> int:
        """The batch size at which a stack and its baseline are compared: under weak scaling, that of one data-parallel rank."""
        return self.batch_size // self.data_ranks if self.scaling == "weak" else self.batch_size

    @property
    def serial(self) -> tuple[tuple[str, dict[str, Any]], ...]:
        """The techniques that do not spread over ranks: the stack that a parallel one is compared with on a single rank."""
        return tuple(use for use in self.techniques if use[0] not in self.parallel)

    @property
    def shape(self) -> dict[str, Any]:
        """What a stack and its baseline must share to be compared: everything but the stack and its own options."""
        return self.model_dump(include={"suite", "model", "workload", "seq_len", "batch_size", "world_size", "dtype", "device"})


def canonical_json(value: object) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
