"""LoRA, on peft."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from effbench.plugin import Context, Inference, InputError, Technique, hookimpl

if TYPE_CHECKING:
    from torch import nn


class LoRA(Technique):
    """Train a low-rank update ΔW = A·B beside frozen weights (Hu et al. 2021, arXiv 2106.09685).

    A matrix of m × n gets rank·(m + n) trainable parameters. Saves optimizer state and checkpoint bytes; a step still runs the
    whole model forward and nearly the whole backward, so small models hardly train faster. Merged, inference costs what the
    base costs; unmerged it costs more. It does not help where the task needs an update of high rank. Merging needs float
    weights: list it before a technique that converts them. Needs peft.
    """

    name: ClassVar = "lora"
    family: ClassVar = "peft"
    requires: ClassVar = ("peft",)
    imports: ClassVar = ("peft",)

    rank: int = Field(default=16, ge=1, description="rank of the update")
    alpha: float = Field(default=32.0, gt=0, description="the update is scaled by alpha / rank (rslora: alpha / √rank)")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="on the input of A, while training")
    target_modules: tuple[str, ...] | None = Field(
        default=None, description="names of linear layers; all but the head if left out"
    )
    rslora: bool = Field(default=False, description="scale by alpha / √rank (Kalajdzievski 2023, arXiv 2312.03732)")
    dora: bool = Field(default=False, description="magnitude and direction apart (Liu et al. 2024, arXiv 2402.09353)")
    merged: bool = Field(default=True, description="fold the update into the weights for inference")

    def unsupported_after(self, earlier: Sequence[Technique]) -> str | None:
        """It trains beside weights that were converted first, not through rounded activations, and merges into no others."""
        for technique in earlier:
            if "linear weights" in technique.sets:
                first = getattr(technique, "at", "infer") == "apply"
                if first and "activations" in technique.sets:
                    return f"no gradient passes the activations that {technique.name} rounds: list it behind {self.name}"
                if not first and self.merged:
                    return f"{technique.name} converts the weights before {self.name} is merged: list it behind {self.name}"
        return None

    def apply(self, model: "nn.Module", ctx: Context) -> "nn.Module":
        """Freeze the model and put the update beside its linear layers."""
        import warnings

        from peft import LoraConfig, get_peft_model

        adapter = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type,unused-ignore]  # peft divides by it: a float is as good
            lora_dropout=self.dropout,
            target_modules=list(self.target_modules) if self.target_modules else "all-linear",
            use_rslora=self.rslora,
            use_dora=self.dora,
            task_type="CAUSAL_LM" if ctx.cell.facts.causal else "FEATURE_EXTRACTION",
        )
        with warnings.catch_warnings():
            # GPT-2's Conv1D keeps its weights transposed; peft sees that by itself, and says so once for every layer.
            warnings.filterwarnings("ignore", "fan_in_fan_out is set to False", UserWarning)
            wrapped: nn.Module = get_peft_model(model, adapter)
        return wrapped

    def infer(self, inference: Inference, ctx: Context) -> Inference:
        """Merge, so that nothing of peft remains in the forward pass."""
        if not self.merged:
            return inference
        from peft.tuners.tuners_utils import BaseTunerLayer

        layers = (module for module in inference.model.modules() if isinstance(module, BaseTunerLayer))
        if any(callable(layer.get_base_layer().weight) for layer in layers):  # a packed layer's weight is a method
            raise InputError("lora cannot merge into converted layers: list it before the technique that converts them")
        return replace(inference, model=inference.model.merge_and_unload())  # type: ignore[operator]  # a PeftModel's method


@hookimpl
def register_techniques(register: "Callable[[type[Technique]], None]") -> None:
    """Register LoRA."""
    register(LoRA)
