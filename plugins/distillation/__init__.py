"""Distillation: a smaller student learns from its teacher."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from effbench.plugin import Cell, Context, Inference, LoadRequest, Technique, TrainStep, hookimpl

if TYPE_CHECKING:
    from torch import nn


class Distillation(Technique):
    """Train a smaller student on what its teacher predicts (Hinton et al. 2015, arXiv 1503.02531).

    The student keeps evenly spaced layers of the model, as DistilBERT does (Sanh et al. 2019, arXiv 1910.01108), or is narrower
    and then starts from new weights. The teacher is the untouched model, tuned first for `teacher_steps`: without that it knows
    the task less well than the baseline. Its tuning is `train.teacher_s`, its forward pass part of every training step, and it
    is gone before inference. With `soft`, `hidden` and `attention` 0 there is no teacher: the same student, trained alone.

    It does not help where training is too short for the student to recover from the layers it lost, where the teacher is hardly
    better than the student, or where training cost is what counts. List it before techniques that wrap or convert the model,
    and mixed precision behind it, so that the teacher's products are in 16 bits as well.
    """

    name: ClassVar = "distillation"
    family: ClassVar = "distillation"
    sets: ClassVar = ("teacher",)

    layers: float = Field(
        default=0.5, gt=0, le=1, description="share of the model's layers that the student keeps, evenly spaced"
    )
    width: float = Field(
        default=1.0, gt=0, le=1, description="share of its heads, hidden and feed-forward sizes; below 1 weights are new"
    )
    soft: float = Field(default=0.5, ge=0, description="weight of the divergence from the teacher's predictions, times T²")
    hard: float = Field(default=0.5, ge=0, description="weight of the loss on the true tokens")
    hidden: float = Field(
        default=0.0, ge=0, description="weight of 1 - cosine between hidden states at the same relative depth"
    )
    attention: float = Field(
        default=0.0,
        ge=0,
        description="weight of the squared difference of attention weights at the same relative depth (eager)",
    )
    temperature: float = Field(default=2.0, gt=0, description="T; both predictions' logits are divided by it")
    divergence: Literal["forward", "reverse", "jensen_shannon"] = Field(
        default="forward",
        description="KL(teacher‖student), KL(student‖teacher), or between both (Agarwal et al. 2023, arXiv 2306.13649)",
    )
    beta: float = Field(default=0.5, gt=0, lt=1, description="jensen_shannon: the teacher's share of the mixture")
    teacher_steps: int = Field(default=0, ge=0, description="training steps of the teacher before the student's first")
    teacher_lr: float | None = Field(default=None, gt=0, description="peak learning rate of these; the stack's if left out")

    @model_validator(mode="after")
    def _something_to_learn(self) -> "Distillation":
        if not (self.hard or self.has_teacher):
            raise ValueError("soft, hard, hidden and attention are all 0: nothing is left to learn from")
        if self.teacher_steps and not self.has_teacher:
            raise ValueError("teacher_steps tune a teacher, but soft, hidden and attention are all 0")
        if self.width < 1 and (self.hidden or self.attention):
            raise ValueError("a narrower student has nothing to match hidden states or attention heads with: set them to 0")
        return self

    @property
    def has_teacher(self) -> bool:
        """Whether any part of the loss needs a teacher."""
        return bool(self.soft or self.hidden or self.attention)

    def unsupported(self, cell: Cell) -> str | None:
        """A narrower student needs whole heads."""
        for what, count in (("heads", cell.facts.heads), ("key-value heads", cell.facts.kv_heads)):
            if not (count * self.width).is_integer():
                return f"width {self.width} of {count} {what} is not a whole number"
        return None

    def unsupported_after(self, earlier: Sequence[Technique]) -> str | None:
        """The student is made of plain layers, and everything in it is trained."""
        changed = next((technique for technique in earlier if _changes_layers(technique)), None)
        return f"{self.name} makes its student of a plain model: list {changed.name} behind it" if changed else None

    def unsupported_before(self, later: Sequence[Technique]) -> str | None:
        """States and attention are compared position by position."""
        longer = next((technique for technique in later if "virtual tokens" in technique.sets), None)
        if longer and (self.hidden or self.attention):
            return f"{longer.name} adds positions that the teacher lacks: set hidden and attention to 0"
        return None

    def load(self, request: LoadRequest) -> LoadRequest:
        """Only eager attention tells its weights."""
        return replace(request, attention="eager") if self.attention else request

    def apply(self, model: "nn.Module", ctx: Context) -> "nn.Module":
        """Make the student of the model."""
        from .student import student_of

        return student_of(model, self.layers, self.width)

    def teacher(self, ctx: Context) -> "nn.Module | None":
        """The untouched model, or a tuned one."""
        from .teacher import teacher_for

        return teacher_for(self, ctx) if self.has_teacher else None

    def train(self, step: TrainStep, ctx: Context) -> TrainStep:
        """Add the teacher's word to the loss."""
        teacher = ctx.kept.get(self.name)
        if teacher is None:
            return step
        from .loss import distilled

        return replace(step, loss=distilled(step.loss, self, teacher, causal=ctx.cell.facts.causal))

    def infer(self, inference: Inference, ctx: Context) -> Inference:
        """Let the teacher go."""
        ctx.kept.pop(self.name, None)
        return inference


def _changes_layers(technique: Technique) -> bool:
    """Before training."""
    converts = {"linear weights", "layer sizes"} & set(technique.sets) and getattr(technique, "at", "infer") != "infer"
    return technique.family == "peft" or "attention heads" in technique.sets or bool(converts)


@hookimpl
def register_techniques(register: "Callable[[type[Technique]], None]") -> None:
    """Register distillation."""
    register(Distillation)
