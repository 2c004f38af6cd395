"""Low-rank factors in place of weights. This card needs no torch; the module lies beside it."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from effbench.plugin import Context, InputError, Technique, hookimpl

if TYPE_CHECKING:
    from torch import nn


class LowRank(Technique):
    """Replace weights by rank-k factors from their SVD and train only these (Denton et al. 2014, arXiv 1404.0736).

    The best rank-k approximation W ≈ B·A takes k·(m + n) weights instead of m·n: fewer to train, to store, to read in decoding
    and to multiply with. It does not help where the spectrum is flat, as in most trained transformers: quality falls at once,
    and training has to win it back. Matrices that would not shrink at this rank, embeddings and the head stay as they are,
    frozen. Needs float weights: list it before a technique that converts them.
    """

    name: ClassVar = "low_rank"
    family: ClassVar = "peft"
    sets: ClassVar = ("trainable parameters",)

    rank: int = Field(default=16, ge=1, description="rank of each factored matrix")

    def unsupported_after(self, earlier: Sequence[Technique]) -> str | None:
        """Only float weights have singular values."""
        changed = next((t for t in earlier if "linear weights" in t.sets and getattr(t, "at", "infer") != "infer"), None)
        return f"{self.name} factors float weights, which {changed.name} changes first: list it behind" if changed else None

    def apply(self, model: "nn.Module", ctx: Context) -> "nn.Module":
        """Freeze the model and factor its linear layers."""
        from .factors import Factors, factorable

        model.requires_grad_(False)
        names = factorable(model, self.rank)
        if not names:  # the row would measure the untouched model
            raise InputError(f"low_rank: no linear layer with float weights gets smaller at rank {self.rank}")
        for name in names:
            model.set_submodule(name, Factors(model.get_submodule(name), self.rank))
        return model


@hookimpl
def register_techniques(register: "Callable[[type[Technique]], None]") -> None:
    """Register low-rank factors."""
    register(LowRank)
