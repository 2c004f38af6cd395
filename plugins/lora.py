"""LoRA, on peft."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field, model_validator

from effbench.plugin import Cell, Context, Inference, InputError, Technique, TrainStep, hookimpl

if TYPE_CHECKING:
    from torch import nn

_ADALORA_START = 1.5  # of the rank: AdaLoRA begins with half as much again and takes away what matters least


class LoRA(Technique):
    """Train a low-rank update ΔW = A·B beside frozen weights (Hu et al. 2021, arXiv 2106.09685).

    A matrix of m × n gets rank·(m + n) trainable parameters. Saves optimizer state and checkpoint bytes; a step still runs the
    whole model forward and nearly the whole backward, so small models hardly train faster. Merged, inference costs what the
    base costs; unmerged it costs more. It does not help where the task needs an update of high rank. Merging needs float
    weights: list it before a technique that converts them. PiSSA takes what it trains out of the frozen weights, so its
    checkpoint holds these as well. AdaLoRA adds a penalty to the model's own loss, and work to every step. Needs peft.
    """

    name: ClassVar = "lora"
    family: ClassVar = "peft"
    requires: ClassVar = ("peft",)
    imports: ClassVar = ("peft",)
    sets: ClassVar = ("trainable parameters",)

    rank: int = Field(default=16, ge=1, description="rank of the update (adalora: on average, in the end)")
    alpha: float = Field(default=32.0, gt=0, description="the update is scaled by alpha / rank (rslora: alpha / √rank)")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="on the input of A, while training")
    target_modules: tuple[str, ...] | None = Field(
        default=None, description="names of linear layers; all but the head if left out"
    )
    rslora: bool = Field(default=False, description="scale by alpha / √rank (Kalajdzievski 2023, arXiv 2312.03732)")
    dora: bool = Field(default=False, description="magnitude and direction apart (Liu et al. 2024, arXiv 2402.09353)")
    pissa: bool = Field(default=False, description="start from the largest singular values (Meng et al. 2024, 2404.02948)")
    adalora: bool = Field(
        default=False, description="from 1.5 × rank down to rank, by importance (Zhang et al. 2023, arXiv 2303.10512)"
    )
    merged: bool = Field(default=True, description="fold the update into the weights for inference")

    def unsupported_after(self, earlier: Sequence[Technique]) -> str | None:
        """Of converted weights there is no SVD, and peft adds no update of AdaLoRA's to them."""
        for technique in earlier:
            if "linear weights" in technique.sets and getattr(technique, "at", "infer") == "apply":
                if self.pissa:
                    return f"pissa starts from the float weights' SVD, and {technique.name} converts them first"
                if self.adalora and self.merged:
                    return f"adalora cannot be merged into what {technique.name} converts: set merged = false"
        return self._dora_unsupported([t for t in earlier if getattr(t, "at", "infer") != "apply"])

    def unsupported_before(self, later: Sequence[Technique]) -> str | None:
        """DoRA wants the weights as they are, and merges by assigning new ones; AdaLoRA weighs all layers' updates together."""
        spread = next((technique for technique in later if technique.shards or technique.dimension == "pp"), None)
        if spread and self.adalora:
            return f"adalora weighs the updates of all layers, which {spread.name} has on different ranks"
        parts = next((technique for technique in later if technique.shards), None)
        if parts and self.dora and self.merged:
            return f"dora cannot be merged into the parts of weights that {parts.name} leaves: set merged = false"
        return self._dora_unsupported(later)

    def _dora_unsupported(self, others: Sequence[Technique]) -> str | None:
        """Until it is merged it divides by the norm of the float weights in every call."""
        for technique in others:
            if (
                self.dora
                and "linear weights" in technique.sets
                and (not self.merged or getattr(technique, "at", "") == "train")
            ):
                return f"unmerged dora reads float weights in every call, which {technique.name} changes"
        return None

    @model_validator(mode="after")
    def _adalora_alone(self) -> Self:
        if self.adalora and (self.rslora or self.dora or self.pissa):
            raise ValueError("adalora has its own scale and start: it goes with none of rslora, dora, pissa")
        return self

    def unsupported_phase(self, cell: Cell, phase: str) -> str | None:
        """AdaLoRA needs a step to learn what matters before it takes anything away."""
        return "adalora needs at least 2 training steps" if self.adalora and phase == "train" and cell.steps < 2 else None

    def apply(self, model: "nn.Module", ctx: Context) -> "nn.Module":
        """Freeze the model and put the update beside its linear layers."""
        import warnings

        from peft import AdaLoraConfig, LoraConfig, get_peft_model

        options: dict[str, Any] = {
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "target_modules": list(self.target_modules) if self.target_modules else "all-linear",
            "task_type": "CAUSAL_LM" if ctx.cell.facts.causal else "FEATURE_EXTRACTION",
        }
        if self.adalora:
            steps = max(2, ctx.cell.steps)
            adapter = AdaLoraConfig(
                target_r=self.rank,
                init_r=round(_ADALORA_START * self.rank),
                total_step=steps,
                tinit=steps // 10,  # as in the paper, ranks settle after a tenth of the steps and long before the last
                tfinal=steps // 3,
                **options,
            )
        else:
            initial = "pissa" if self.pissa else True
            adapter = LoraConfig(r=self.rank, use_rslora=self.rslora, use_dora=self.dora, init_lora_weights=initial, **options)
        with warnings.catch_warnings():
            # GPT-2's Conv1D keeps its weights transposed; peft sees that by itself, and says so once for every layer.
            warnings.filterwarnings("ignore", "fan_in_fan_out is set to False", UserWarning)
            wrapped: nn.Module = get_peft_model(model, adapter)
        return wrapped

    def train(self, step: TrainStep, ctx: Context) -> TrainStep:
        """AdaLoRA looks at the gradients after each of the optimizer's steps and sets the least important ranks to zero."""
        if self.adalora:
            from peft.tuners.adalora import AdaLoraModel

            tuner = next(module for module in step.model.modules() if isinstance(module, AdaLoraModel))
            number, update = count(1), step.update

            def update_and_allocate(current: TrainStep) -> None:  # the optimizer may be another technique's
                hook = current.optimizer.register_step_post_hook(lambda *_: tuner.update_and_allocate(next(number)))
                update(current)
                hook.remove()

            return replace(step, update=update_and_allocate)
        return step

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
