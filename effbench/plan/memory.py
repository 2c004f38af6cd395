"""What a cell needs of memory, predicted without torch, and what there is of it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from effbench.plugin.cell import Cell
from effbench.plugin.technique import Technique
from effbench.store.machine import gpu_memory_bytes, memory_bytes

PREDICTED = "predicted to need"
"""How the reason begins with which something is skipped that would not fit."""

Phase = Literal["train", "infer"]


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank, by phase; a phase is missing where a technique does not say what it does to memory."""

    needed: Mapping[Phase, float]
    there: float

    def reasons(self) -> dict[str, str]:
        """Why phases are skipped: what is predicted for them is not there."""
        return {
            phase: f"{PREDICTED} {_gib(bytes_)}, the limit is {_gib(self.there)}"
            for phase, bytes_ in self.needed.items()
            if bytes_ > self.there
        }


def predict(cell: Cell, techniques: Sequence[Technique], phases: Collection[Phase], limit_gb: float | None) -> Memory:
    """What these phases of a cell need, and what each of its ranks may have."""
    needed: dict[Phase, float] = {}
    for phase in phases:
        beyond = [technique.memory(cell, phase) for technique in techniques]
        known = [more for more in beyond if more is not None]
        if len(known) == len(beyond):
            needed[phase] = untouched_bytes(cell, phase) + sum(known)
    return Memory(needed, available_bytes(cell, limit_gb))


def untouched_bytes(cell: Cell, phase: Phase) -> float:
    """One rank's peak with no technique: the parts that grow, each at the least that it was measured to be.

    Weights, in training with their gradients, AdamW's two moments and what layers keep. Logits: in training three float32
    copies of all of them (the model's own, the loss's, the gradient). In inference one layer's values are alive at a time,
    beside the cache of keys and values, and only the last position has logits, but for a model that is not causal.
    A model without a feed-forward layer is attention alone: queries, keys, values and what is attended; then the gradients of
    these, or the cache's copies of keys and values.
    """
    facts, size = cell.facts, cell.value_bytes
    sequences = cell.batch_size / cell.data_ranks
    tokens = sequences * cell.seq_len
    if not facts.intermediate:
        copies = 8 if phase == "train" else 6 if facts.causal else 4
        return copies * tokens * facts.hidden * size
    weights = cell.weight_bytes
    if phase == "train":
        return 4 * weights + kept_bytes(cell) + 3 * tokens * facts.vocab * 4
    layer = tokens * (4 * facts.hidden + 3 * facts.intermediate) * size
    if not facts.causal:
        return weights + layer + tokens * facts.vocab * size
    width = 2 * facts.layers * facts.hidden * facts.kv_heads / facts.heads
    return weights + layer + (tokens + sequences * cell.new_tokens) * width * size


def kept_bytes(cell: Cell) -> float:
    """What the layers of one rank keep for the backward pass, in training: tokens x (16 hidden + 4 intermediate) values each.

    Korthikanti et al. 2022 (arXiv 2205.05198, section 4) count at least 17 hidden with fused kernels; the sums here are those
    of transformers' Llama, measured.
    """
    tokens = cell.batch_size / cell.data_ranks * cell.seq_len
    return tokens * cell.facts.layers * (16 * cell.facts.hidden + 4 * cell.facts.intermediate) * cell.value_bytes


def available_bytes(cell: Cell, limit_gb: float | None) -> float:
    """What one rank may have.

    On CUDA its GPU's memory: each rank has one of its own, and the suite's limit is on resident memory of the host. On a CPU
    the suite's limit, which is that of one process and is believed even where it passes the machine's memory: so a suite can
    overrule a prediction. Otherwise the machine's memory, of which each rank gets its share; ranks spread over several machines
    have more, and a limit says so.
    """
    if cell.device == "cuda":
        return gpu_memory_bytes()
    return limit_gb * 2**30 if limit_gb else memory_bytes() / cell.world_size


def _gib(count: float) -> str:
    gib = count / 2**30
    return f"{gib:.3g} GiB" if gib < 999.5 else f"{gib:.0f} GiB"
