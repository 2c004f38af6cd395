"""What techniques that convert the weights of linear layers have in common; without torch."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from effbench.plugin import Cell, Context, Inference, Technique

if TYPE_CHECKING:
    from torch import nn


class PostTraining(Technique):
    """Linear layers are converted after training, when their weights are known."""

    family: ClassVar = "quantization"
    sets: ClassVar[tuple[str, ...]] = ("linear weights",)
    imports: ClassVar[tuple[str, ...]] = (f"{__package__}.layers",)

    def unsupported_after(self, earlier: Sequence[Technique]) -> str | None:
        """What prunes after training looks at float weights."""
        late = next((t for t in earlier if t.family == "pruning" and getattr(t, "at", "apply") == "infer"), None)
        if late is not None and getattr(self, "at", "infer") != "infer":
            return f'{self.name} converts the weights before {late.name} looks at them: use at = "apply" there, or "infer" here'
        return None

    def unsupported_before(self, later: Sequence[Technique]) -> str | None:
        """Merging adds to float weights, and pruning looks at them."""
        pruning = next((technique for technique in later if technique.family == "pruning"), None)
        if pruning is not None and getattr(self, "at", "infer") != "infer":
            return f"{self.name} converts the weights before {pruning.name} looks at them: list it behind {pruning.name}"
        merged: Any = next((technique for technique in later if getattr(technique, "merged", False)), None)
        if merged is not None and getattr(self, "at", "infer") != "apply":
            return f"{self.name} converts the weights before {merged.name} is merged: list it behind {merged.name}"
        return None

    def infer(self, inference: Inference, ctx: Context) -> Inference:
        """Convert after training."""
        return replace(inference, model=self.convert(inference.model, ctx))

    def convert(self, model: "nn.Module", ctx: Context) -> "nn.Module":
        """The model with its linear layers converted, in place."""
        raise NotImplementedError


class BeforeOrAfter(PostTraining):
    """Conversion may also come first; then everything is frozen, and adapters behind it train beside the converted weights."""

    at: Literal["infer", "apply"] = Field(
        default="infer", description="convert after training, or before it and freeze the model, for adapters behind it"
    )

    def unsupported_after(self, earlier: Sequence[Technique]) -> str | None:
        """Freezing comes before what is meant to train."""
        adapter: Any = next((technique for technique in earlier if technique.family == "peft"), None)
        if self.at == "apply" and adapter is not None:
            return f'{self.name} would freeze what {adapter.name} trains: list it before {adapter.name}, or use at = "infer"'
        return super().unsupported_after(earlier)

    def unsupported_phase(self, cell: Cell, phase: str) -> str | None:
        """Converted weights are frozen, so that something has to stand behind them that trains."""
        alone = not cell.techniques or cell.techniques[-1][0] == self.name
        if phase == "train" and self.at == "apply" and alone:
            return f'{self.name} weights are not trained: list an adapter behind it, or use at = "infer"'
        return None

    def apply(self, model: "nn.Module", ctx: Context) -> "nn.Module":
        """Convert before training, if asked to."""
        return self.convert(model.requires_grad_(False), ctx) if self.at == "apply" else model

    def infer(self, inference: Inference, ctx: Context) -> Inference:
        """Convert after training, unless that was done before."""
        return super().infer(inference, ctx) if self.at == "infer" else inference
