"""Sliding-window attention."""

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from effbench.plugin import Context

from .card import AttentionForm

if TYPE_CHECKING:
    from .form import Form


class SlidingWindow(AttentionForm):
    """Each token attends only to the tokens near it (Child et al. 2019, arXiv 1904.10509; Beltagy et al. 2020, 2004.05150).

    Time and memory of training and prefill grow with n · window and not with n²; decoding keeps the last `window` keys and
    values in a ring, so its memory and time per token are constant. Nothing is trained anew and no parameter is added. What
    lies further back reaches a token only through the layers between, `window` tokens for each, so recall over long distances
    is lost; a model trained with full attention has to be trained on. It does not help where sequences are hardly longer than
    the window.
    """

    name: ClassVar = "sliding_window"
    sets: ClassVar = ("attention", "kv cache")

    window: int = Field(
        default=256, ge=1, description="tokens: causal, the last ones with the token itself; two-sided, half on either side"
    )

    def build(self, ctx: Context) -> "Form":
        """A band."""
        from .window import Window

        return Window(self.window)
