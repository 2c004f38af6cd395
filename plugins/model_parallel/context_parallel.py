"""Context parallelism: each rank trains on its part of every sequence."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from effbench.plugin import Cell, Context, Technique, TrainStep

from ..attention.card import no_form_for

if TYPE_CHECKING:
    from torch import nn


class ContextParallel(Technique):
    """Train on long sequences split over ranks, each with the keys and values of all (section 3.3.2 of arXiv 2407.21783, 2024).

    It is the form that Llama 3 was trained with, exact as ring attention is (Liu et al. 2023, arXiv 2310.01889), with one
    all-gather in place of a ring. A rank has two chunks of 2 × ranks, one from either end, so that all have as many pairs to
    attend to. What layers keep for the backward pass, and logits, are split, but for gathered keys and values; weights and
    optimizer state are whole on every rank. It costs the exchange of keys, values and all gradients, so it helps where
    sequences are long and few, and not where data parallelism has enough of them to share out. In inference each rank works
    as if alone.
    """

    name: ClassVar = "context_parallel"
    family: ClassVar = "parallelism"
    dimension: ClassVar = "cp"
    sets: ClassVar = ("attention",)
    imports: ClassVar = (f"{__package__}.gathered_attention",)

    ranks: int | None = Field(
        default=None, ge=1, description="ranks that share each sequence; if left out, those that the rest of the stack leaves"
    )

    def degree(self) -> int | None:
        """As the option says."""
        return self.ranks

    def unsupported(self, cell: Cell) -> str | None:
        """Causal models alone: of others the chunks would not be in balance, nor is their loss one over positions."""
        ranks = cell.parallel.get(self.name, cell.world_size)
        if not cell.facts.causal:
            return f"{self.name} is for causal models, not for {cell.facts.model_type}"
        if ranks > 1 and cell.seq_len % (2 * ranks):
            return f"seq_len {cell.seq_len} cannot be cut into 2 × {ranks} equal chunks"
        return no_form_for(cell.facts.model_type)

    def unsupported_after(self, earlier: Sequence[Technique]) -> str | None:
        """Whatever else reads whole sequences would read this rank's part."""
        for technique in earlier:
            if "virtual tokens" in technique.sets:
                return f"{technique.name} makes sequences longer than the parts that {self.name} cuts them into"
            if technique.family == "distillation":
                return f"{technique.name} has a teacher, to whom {self.name} would give parts of sequences"
        return None

    def unsupported_before(self, later: Sequence[Technique]) -> str | None:
        """In either order."""
        return self.unsupported_after(later)

    def memory(self, cell: Cell, phase: Literal["train", "infer"]) -> float:
        """What grows with tokens is split in training; nothing is in inference."""
        if phase == "infer":
            return 0.0
        facts, ranks = cell.facts, cell.parallel.get(self.name, cell.world_size)
        size = {"float32": 4, "bfloat16": 2, "float16": 2}[cell.dtype]
        kept = facts.layers * (16 * facts.hidden + 4 * facts.intermediate) * size + 3 * facts.vocab * 4
        return -cell.batch_size / cell.data_ranks * cell.seq_len * kept * (1 - 1 / ranks)

    def apply(self, model: "nn.Module", ctx: Context) -> "nn.Module":
        """Let layers attend over all ranks' keys while a step is taken."""
        if ctx.mesh is not None:
            from .gathered_attention import Sequences, install

            ctx.kept[self.name] = sequences = Sequences(ctx.mesh["cp"])
            install(model, sequences)
        return model

    def train(self, step: TrainStep, ctx: Context) -> TrainStep:
        """Give the model this rank's part of a batch, and add up gradients and losses over the ranks."""
        if ctx.mesh is None:
            return step
        from .gathered_attention import Sequences, parted, summed

        sequences: Sequences = ctx.kept[self.name]
        return replace(step, loss=parted(step.loss, sequences), forward_backward=summed(step.forward_backward, sequences))
