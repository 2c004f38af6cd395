"""What pruning techniques have in common: when they act, and zeros that stay zero while the rest trains."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from effbench.plugin import Context, Inference, Technique, TrainStep

if TYPE_CHECKING:
    from torch import Tensor, nn

Scope = Literal["global", "layer", "output"]
"""What weights compete within: all linear layers', those of a layer, those of one of its outputs."""


class Pruning(Technique):
    """Weights are taken away before training, which then recovers, or after it."""

    family: ClassVar = "pruning"

    at: Literal["apply", "infer"] = Field(
        default="apply", description="prune before training, which then recovers, or after it, without recovery"
    )

    def unsupported_after(self, earlier: Sequence[Technique]) -> str | None:
        """Scores are taken of float weights, and of a model that nothing was put into."""
        for technique in earlier:
            if "linear weights" in technique.sets and (self.at == "infer" or getattr(technique, "at", "infer") == "apply"):
                return f"{technique.name} converts the weights before {self.name} looks at them: list it behind {self.name}"
            if technique.family == "peft" and self.at == "apply":
                return f'{self.name} would prune what {technique.name} is put into: list it before, or use at = "infer"'
        return None

    def apply(self, model: "nn.Module", ctx: Context) -> "nn.Module":
        """Prune before training, if asked to."""
        return self.prune(model, ctx) if self.at == "apply" else model

    def infer(self, inference: Inference, ctx: Context) -> Inference:
        """Prune after training, if asked to."""
        return replace(inference, model=self.prune(inference.model, ctx)) if self.at == "infer" else inference

    def prune(self, model: "nn.Module", ctx: Context) -> "nn.Module":
        """The model without some of its weights, in place."""
        raise NotImplementedError


class Masking(Pruning):
    """Weights of linear layers become zero, those with the lowest scores; embeddings and the head stay whole."""

    imports: ClassVar[tuple[str, ...]] = (f"{__package__}.masks",)

    def prune(self, model: "nn.Module", ctx: Context) -> "nn.Module":
        """Zeros in place."""
        from .masks import float_layers, zero

        layers = float_layers(model, self.name)
        zero(layers, self.masks(model, layers, ctx))
        return model

    def masks(self, model: "nn.Module", layers: "dict[str, nn.Module]", ctx: Context) -> "dict[str, Tensor]":
        """By layer: True where a weight stays, (outputs, inputs)."""
        raise NotImplementedError

    def train(self, step: TrainStep, ctx: Context) -> TrainStep:
        """Put the zeros back after every update; frozen weights keep theirs."""
        if self.at == "infer":
            return step
        from .masks import keep_zeros

        restore, update = keep_zeros(step.model), step.update

        def update_and_mask(current: TrainStep) -> None:
            update(current)
            restore()

        return replace(step, update=update_and_mask)


class Sparse(Masking):
    """Masking to a share of the weights."""

    sparsity: float = Field(default=0.5, ge=0, lt=1, description="share of the weights that become zero")
