"""Performer: attention by random features."""

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from effbench.plugin import Context, TrainStep

from .card import AttentionForm

if TYPE_CHECKING:
    from torch import nn

    from .form import Form


class Performer(AttentionForm):
    """Softmax estimated by positive orthogonal random features, FAVOR+ (Choromanski et al. 2020, arXiv 2009.14794).

    Time and memory grow with n · features and not with n²; decoding keeps sums of features × channels per head in place of a
    cache of tokens, so its memory and time per token are constant. The features are drawn once per layer from the trial's seed
    and saved with the model. The estimate's error falls with the number of features only where logits are small (|q·k| of 1 or
    so): its variance grows exponentially with |q + k|², so on a model trained with sharp softmax it is useless until the model
    is trained with it. Attention dropout is left out: there are no weights to drop. It does not help below a thousand tokens
    or so, nor where exact recall of single tokens is what counts.
    """

    name: ClassVar = "performer"
    sets: ClassVar = ("attention", "kv cache")

    features: int = Field(default=128, ge=1, description="random features per head: the error falls with their root")
    redraw: int = Field(
        default=0, ge=0, description="training steps between new draws of the features, 0: never; inference keeps the last"
    )

    def build(self, ctx: Context) -> "Form":
        """The same for all layers, whose features are their own."""
        from .favor import Favor

        return Favor()

    def apply(self, model: "nn.Module", ctx: Context) -> "nn.Module":
        """Put the form in, and draw each layer's features."""
        from .favor import draw

        model = super().apply(model, ctx)
        draw(model, self.features)
        return model

    def train(self, step: TrainStep, ctx: Context) -> TrainStep:
        """Draw anew every so many steps; from the trial's seed, so that all ranks draw the same."""
        if not self.redraw:
            return step
        from itertools import count

        import torch

        from .favor import draw

        generator, number = torch.Generator().manual_seed(ctx.seed), count(1)
        update = step.update

        def update_and_draw(current: TrainStep) -> None:
            update(current)
            if next(number) % self.redraw == 0:
                draw(current.model, self.features, generator)

        return replace(step, update=update_and_draw)
