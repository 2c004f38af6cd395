"""Tensor parallelism: each rank computes with its part of every matrix."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from effbench.plugin import Cell, Context, LoadRequest, Technique

from .plans import SEQUENCE_PARALLEL, plan_of

if TYPE_CHECKING:
    from torch import nn

_SPLITTABLE = frozenset(("adapters", "bitfit", "lora"))
"""Of the techniques that change layers, those whose additions are split with them, or read what is whole on every rank."""


class TensorParallel(Technique):
    """Each rank computes with its part of every matrix, split by columns, then by rows (Shoeybi et al. 2019, arXiv 1909.08053).

    Attention heads and feed-forward channels are shared out, and so are weights, gradients, optimizer state and the cache of
    keys and values; embedding and head by tokens, where the ranks divide the vocabulary. It costs two all-reduces of all
    hidden states per layer forward and two backward, none of which hides behind computing: it helps where ranks are joined by
    fast links and matrices are large, and not where they share cores. The split is the model's own in transformers, or one
    of ours (BERT, GPT-2, OPT); mixtures of experts have none here. Dropout in a split layer draws the same for each rank's
    heads. For several batches at once stack it with FSDP: DDP does not know parameters of which each rank has a part.
    """

    name: ClassVar = "tensor_parallel"
    family: ClassVar = "parallelism"
    dimension: ClassVar = "tp"
    shards: ClassVar = True
    imports: ClassVar = (f"{__package__}.splitting",)

    ranks: int | None = Field(
        default=None, ge=1, description="ranks that share each matrix; if left out, those that the rest of the stack leaves"
    )
    sequence_parallel: bool = Field(
        default=False,
        description="in training also split norms and residuals, by position (Korthikanti et al. 2022, arXiv 2205.05198)",
    )

    def degree(self) -> int | None:
        """As the option says."""
        return self.ranks

    def unsupported(self, cell: Cell) -> str | None:
        """Heads and channels are shared out whole, to models whose layers are known."""
        facts, ranks = cell.facts, cell.parallel.get(self.name, cell.world_size)
        if plan_of(facts.model_type) is None:
            return f"tensor_parallel knows no plan for {facts.model_type}"
        sizes = {"heads": facts.heads, "key and value heads": facts.kv_heads, "feed-forward channels": facts.intermediate}
        for what, size in sizes.items():
            if size % ranks:
                return f"{size} {what} cannot be shared out to {ranks} tensor-parallel ranks"
        if self.sequence_parallel:
            if facts.model_type not in SEQUENCE_PARALLEL:
                return f"sequence_parallel is for {', '.join(sorted(SEQUENCE_PARALLEL))}, not for {facts.model_type}"
            if cell.seq_len % ranks:
                return f"seq_len {cell.seq_len} cannot be split over {ranks} sequence-parallel ranks"
        return None

    def unsupported_after(self, earlier: Sequence[Technique]) -> str | None:
        """What is already in the model must be something that can be split."""
        for technique in earlier:
            if reason := _not_in_parts(technique):
                return reason
            if technique.dimension == "dp":
                return f"{technique.name} distributes the layers that {self.name} splits: list it behind {self.name}"
            if _changes_model(technique) and not technique.dimension and not _splittable(technique):
                return f"{self.name} does not know how to split what {technique.name} makes of a model"
            if self.sequence_parallel and technique.name == "adapters":
                return f"sequence_parallel splits the positions that {technique.name} reads: leave one of the two out"
        return None

    def unsupported_before(self, later: Sequence[Technique]) -> str | None:
        """A technique that changes layers wants whole ones."""
        for technique in later:
            if reason := _not_in_parts(technique):
                return reason
            if _changes_model(technique) and not technique.dimension:
                return f"{technique.name} changes layers of which each rank has only a part: list it before {self.name}"
        return None

    def memory(self, cell: Cell, phase: Literal["train", "infer"]) -> float:
        """Each rank has its part of weights, channels, heads and cache; logits are whole, residuals unless positions are split.

        Of the 16 values per hidden channel and token that a layer keeps in training, 10 belong to heads: as good as all that
        Korthikanti et al. 2022 (section 4) count there.
        """
        facts, ranks = cell.facts, cell.parallel.get(self.name, cell.world_size)
        size = {"float32": 4, "bfloat16": 2, "float16": 2}[cell.dtype]
        tokens = cell.batch_size / cell.data_ranks * cell.seq_len
        weights = facts.approximate_parameters
        if phase == "train":
            hidden = (16 if self.sequence_parallel else 10) * facts.hidden
            split = 4 * weights + tokens * facts.layers * (hidden + 4 * facts.intermediate)
        else:
            cached = tokens + cell.batch_size / cell.data_ranks * cell.new_tokens
            cache = cached * 2 * facts.layers * facts.hidden * facts.kv_heads / facts.heads
            split = weights + tokens * (3 * facts.hidden + 3 * facts.intermediate) + cache
        return -split * size * (1 - 1 / ranks)

    def load(self, request: LoadRequest) -> LoadRequest:
        """The whole model never lies on one device."""
        return replace(request, host=True)

    def apply(self, model: "nn.Module", ctx: Context) -> "nn.Module":
        """Give this rank its part of the model."""
        plan = plan_of(ctx.cell.facts.model_type)
        if ctx.mesh is not None and plan is not None:
            from .splitting import split_model

            split_model(model, ctx.mesh["tp"], plan, sequence=self.sequence_parallel)
        return model.to(ctx.device)


def _changes_model(technique: Technique) -> bool:
    return type(technique).apply is not Technique.apply


def _splittable(technique: Technique) -> bool:
    """Whether what it puts into a model is split with the layers, or reads what is whole, or acts on any heads alike."""
    whole = any(getattr(technique, option, False) for option in ("adalora", "dora"))  # norms and ranks of whole matrices
    learns = technique.name == "linformer"  # each rank's heads would learn another projection
    return not whole and not learns and (technique.name in _SPLITTABLE or "attention" in technique.sets)


def _not_in_parts(technique: Technique) -> str | None:
    """Why this one cannot work, whenever it acts, where each rank has a part of each matrix."""
    if "linear weights" in technique.sets or technique.family in ("pruning", "distillation"):
        return f"{technique.name} needs whole matrices, of which each tensor-parallel rank has only a part"
    if technique.dimension == "dp" and not _changes_model(technique):
        return f"{technique.name} does not know parameters of which each rank has a part: use fsdp for data parallelism"
    if technique.dimension == "pp":
        return f"{technique.name} gives ranks different layers, which tensor_parallel wants to split over all of them"
    return None
