"""Reformer: attention within buckets of similar vectors."""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, field_validator

from effbench.plugin import Cell, Context

from .card import AttentionForm

if TYPE_CHECKING:
    from torch import nn

    from .form import Form


class Reformer(AttentionForm):
    """Queries attend to keys of their own hash bucket, LSH attention (Kitaev et al. 2020, arXiv 2001.04451).

    Time and memory of training and prefill grow with n · chunk · hashes; decoding compares one query with the cached keys'
    hashes and saves nothing over exact attention. Published, tokens are sorted by bucket, and chunks of the sorted order attend
    to themselves and the chunk before; the rounds of hashing are weighted by their softmax sums, so a key met in several rounds
    counts as often (the paper's appendix divides by that number, the usual implementations do not). On a causal model later
    tokens move the borders of chunks and so change earlier outputs: it leaks the future. `form = "causal"` sees the last
    `chunk` earlier keys of the same bucket in each round: no later token changes it.

    The paper trains models whose keys are their queries (`shared_qk`, on their direction alone): a model with a key projection
    would lose it. By default queries and keys are hashed by the same rotations, each query sees the keys where it would stand
    among them, and itself. Keys far in angle are lost: a converted model has to be trained on. It does not help below a
    thousand tokens or so; buckets are made for the cell's seq_len.
    """

    name: ClassVar = "reformer"
    sets: ClassVar = ("attention", "kv cache")

    hashes: int = Field(
        default=1, ge=1, description="rounds of hashing; time grows with them, and the chance to meet a near key"
    )
    chunk: int = Field(default=64, ge=1, description="keys in a chunk")
    buckets: int | None = Field(
        default=None, ge=2, description="per round, a power of two; if left out 2 · seq_len / chunk, as published"
    )
    form: Literal["causal", "published"] | None = Field(
        default=None, description="if left out, causal on causal models and published on others"
    )
    shared_qk: bool = Field(default=False, description="keys are the normalised queries, and the key projection is unused")

    @field_validator("buckets")
    @classmethod
    def _power_of_two(cls, buckets: int | None) -> int | None:
        if buckets is not None and buckets.bit_count() != 1:
            raise ValueError(f"{buckets} buckets are no power of two")
        return buckets

    def unsupported(self, cell: Cell) -> str | None:
        """The causal variant makes a model causal; keys that are queries need as many heads."""
        if self.form == "causal" and not cell.facts.causal:
            return f'form = "causal" hides later tokens, and {cell.facts.model_type} looks both ways: use "published"'
        if self.shared_qk and cell.facts.heads != cell.facts.kv_heads:
            return f"shared_qk needs a key head for each query head, and the model has {cell.facts.kv_heads}"
        return super().unsupported(cell)

    def leaks(self, cell: Cell) -> str | None:
        """The published variant does."""
        if self.form == "published" and cell.facts.causal:
            return "later tokens move the borders of the chunks that earlier ones are sorted into"
        return None

    def buckets_for(self, tokens: int) -> int:
        """As given, or the power of two next below 2 · tokens / chunk."""
        return self.buckets or 2 ** max(1, (2 * tokens // self.chunk).bit_length() - 1)

    def build(self, ctx: Context) -> "Form":
        """The same for all layers, whose rotations are their own."""
        from .buckets import Buckets
        from .chunks import Rule

        causal = ctx.cell.facts.causal
        strict = causal and self.form != "published"
        return Buckets(Rule(self.chunk, strict, causal, self.shared_qk), self.buckets_for(ctx.cell.seq_len))

    def apply(self, model: "nn.Module", ctx: Context) -> "nn.Module":
        """Put the form in, and draw each layer's rotations."""
        from .buckets import draw

        model = super().apply(model, ctx)
        draw(model, self.hashes, self.buckets_for(ctx.cell.seq_len))
        return model
