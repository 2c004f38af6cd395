"""IA3, on peft."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import Field, model_validator

from effbench.plugin import Context, Inference, InputError, Technique, hookimpl

if TYPE_CHECKING:
    from torch import nn


class IA3(Technique):
    """Train vectors that rescale keys, values and feed-forward activations (Liu et al. 2022, arXiv 2205.05638).

    One vector per adapted layer, as long as its output (keys, values) or its input (feed-forward): the fewest parameters of
    all but bitfit and prompt tuning, so it wants a learning rate ten times or more that of LoRA. Merged, inference costs what
    the base costs. It does not help where rescaling what is there is not enough. Which layers are adapted is peft's choice for
    the model's family, unless named. Merging needs float weights: list it before a technique that converts them. Needs peft.
    """

    name: ClassVar = "ia3"
    family: ClassVar = "peft"
    requires: ClassVar = ("peft",)
    imports: ClassVar = ("peft",)
    sets: ClassVar = ("trainable parameters",)

    target_modules: tuple[str, ...] | None = Field(
        default=None, description="names of linear layers to rescale; peft's for this family of models if left out"
    )
    feedforward_modules: tuple[str, ...] | None = Field(
        default=None, description="those of them whose input is rescaled instead of the output"
    )
    merged: bool = Field(default=True, description="fold the vectors into the weights for inference")

    @model_validator(mode="after")
    def _both_or_neither(self) -> Self:
        if self.feedforward_modules is not None and not set(self.feedforward_modules) <= set(self.target_modules or ()):
            raise ValueError("feedforward_modules must be among target_modules")
        return self

    def unsupported_after(self, earlier: Sequence[Technique]) -> str | None:
        """Only float weights can be scaled by what was trained."""
        converted = next((t for t in earlier if "linear weights" in t.sets and getattr(t, "at", "infer") == "apply"), None)
        if self.merged and converted:
            return f"{self.name} cannot be merged into what {converted.name} converts: set merged = false"
        return None

    def unsupported_before(self, later: Sequence[Technique]) -> str | None:
        """Merging assigns new weights."""
        parts = next((technique for technique in later if technique.shards), None)
        if self.merged and parts is not None:
            return f"{self.name} cannot be merged into the parts of weights that {parts.name} leaves: set merged = false"
        return None

    def apply(self, model: "nn.Module", ctx: Context) -> "nn.Module":
        """Freeze the model and put the vectors beside its layers."""
        import warnings

        from peft import IA3Config, get_peft_model

        vectors = IA3Config(
            target_modules=list(self.target_modules) if self.target_modules else None,
            feedforward_modules=list(self.feedforward_modules or ()) if self.target_modules else None,
            task_type="CAUSAL_LM" if ctx.cell.facts.causal else "FEATURE_EXTRACTION",
        )
        with warnings.catch_warnings():
            # GPT-2's Conv1D keeps its weights transposed; peft sees that by itself, and says so once for every layer.
            warnings.filterwarnings("ignore", "fan_in_fan_out is set to False", UserWarning)
            try:
                wrapped: nn.Module = get_peft_model(model, vectors)
            except ValueError as error:  # a family that peft has no choice for, or names that are nowhere
                raise InputError(f"ia3: name target_modules and feedforward_modules: {error}") from error
        return wrapped

    def infer(self, inference: Inference, ctx: Context) -> Inference:
        """Merge, so that nothing of peft remains in the forward pass."""
        if not self.merged:
            return inference
        from peft.tuners.tuners_utils import BaseTunerLayer

        layers = (module for module in inference.model.modules() if isinstance(module, BaseTunerLayer))
        if any(callable(layer.get_base_layer().weight) for layer in layers):  # a packed layer's weight is a method
            raise InputError("ia3 cannot merge into converted layers: list it before the technique that converts them")
        return replace(inference, model=inference.model.merge_and_unload())  # type: ignore[operator]  # a PeftModel's method


@hookimpl
def register_techniques(register: "Callable[[type[Technique]], None]") -> None:
    """Register IA3."""
    register(IA3)
