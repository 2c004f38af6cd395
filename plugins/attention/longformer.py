"""Longformer."""

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from effbench.plugin import Context

from .card import AttentionForm

if TYPE_CHECKING:
    from .form import Form


class Longformer(AttentionForm):
    """A sliding window for all tokens, and a few that everything sees (Beltagy et al. 2020, arXiv 2004.05150).

    Time and memory grow with n · (window + global tokens). The sequence's first tokens are the global ones: every later token
    sees them, and in a two-sided model they see every token (as the published model's first token does for classification).
    Decoding keeps the global keys and the last `window` ones. The published model has projections of its own for global
    attention; here they are shared, so that any trained model can be given the form and no parameter is added. It does not help
    where sequences are hardly longer than the window; over a plain window it gains where the first tokens carry the task, or
    where a model puts much of its attention on them.
    """

    name: ClassVar = "longformer"
    sets: ClassVar = ("attention", "kv cache")

    window: int = Field(
        default=256, ge=1, description="tokens: causal, the last ones with the token itself; two-sided, half on either side"
    )
    global_tokens: int = Field(default=16, ge=1, description="first tokens of the sequence, seen from everywhere")

    def build(self, ctx: Context) -> "Form":
        """A band and the first keys."""
        from .window import Window

        return Window(self.window, self.global_tokens)
