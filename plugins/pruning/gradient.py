"""Weights that the loss says matter least."""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from effbench.plugin import Cell, Context, Inference, TrainStep

from .masking import Scope, Sparse

if TYPE_CHECKING:
    from torch import Tensor, nn


class GradientPruning(Sparse):
    """Zero the weights with the smallest |weight × gradient|: what the loss loses (Molchanov et al. 2019, arXiv 1906.10771).

    Other criteria: `gradient`, the smallest gradients alone, which says what the loss is indifferent to *changing*, not to
    removing, and is mostly worse; `movement` (Sanh et al. 2020, arXiv 2005.07683), which adds -weight × gradient up while
    training, removes what moves towards zero, in twenty steps along a cubic curve that ends after two thirds of the steps, and
    lets a weight come back. Needs backward passes over calibration batches, or training that reaches all linear weights, so no
    adapter behind it. Ranked over the whole model, gradients of different layers are not comparable and whole layers vanish.
    Movement pays off on fine-tuning far from what the model was trained on and at high sparsity; with few
    steps its scores are noise. Like all masks it saves no time in dense products.
    """

    name: ClassVar = "gradient_pruning"
    imports: ClassVar = (*Sparse.imports, f"{__package__}.scores", f"{__package__}.movement")

    criterion: Literal["weight_gradient", "gradient", "movement"] = Field(
        default="weight_gradient", description="what is smallest; movement is learnt in training"
    )
    scope: Scope = Field(default="layer", description="what weights compete within")
    batches: int = Field(
        default=8, ge=1, description="calibration batches, at the cell's batch size and sequence length (not for movement)"
    )

    @model_validator(mode="after")
    def _movement_while_training(self) -> "GradientPruning":
        if self.criterion == "movement" and self.at == "infer":
            raise ValueError('movement is learnt while training: it goes with at = "apply" alone')
        return self

    def unsupported(self, cell: Cell) -> str | None:
        """Without training nothing moves."""
        if self.criterion == "movement" and "train" not in cell.phases:
            return 'movement is learnt in training: add the phase "train", or use another criterion'
        return None

    def prune(self, model: "nn.Module", ctx: Context) -> "nn.Module":
        """Zeros in place; movement makes them while training."""
        return model if self.criterion == "movement" else super().prune(model, ctx)

    def masks(self, model: "nn.Module", layers: "dict[str, nn.Module]", ctx: Context) -> "dict[str, Tensor]":
        """By gradients at this point."""
        from .masks import masks_of, rows
        from .scores import gradients

        found = gradients(model, layers, ctx.calibration(self.batches))
        if self.criterion == "weight_gradient":
            found = {name: rows(layers[name]) * gradient for name, gradient in found.items()}
        return masks_of({name: score.abs() for name, score in found.items()}, self.sparsity, self.scope)

    def train(self, step: TrainStep, ctx: Context) -> TrainStep:
        """Keep the zeros, or learn where they belong."""
        if self.criterion != "movement":
            return super().train(step, ctx)
        from .movement import moving

        return moving(step, self.sparsity, self.scope, ctx.cell.steps)

    def infer(self, inference: Inference, ctx: Context) -> Inference:
        """What movement masked in every forward pass becomes zeros for good."""
        if self.criterion == "movement":
            from .movement import settle

            settle(inference.model)
        return super().infer(inference, ctx)
