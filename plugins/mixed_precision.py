"""Mixed precision: autocast over float32 weights."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from effbench.plugin import Cell, Context, Inference, Technique, TrainStep, hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn

    from effbench.plugin.technique import Batch


class MixedPrecision(Technique):
    """Matrix products in 16 bits, weights and sums in 32 (Micikevicius et al. 2017, arXiv 1710.03740).

    float16 needs a loss scale, which GradScaler finds; steps whose gradients overflow are skipped. It helps where the device
    has 16-bit matrix units and matrices are large enough: with a hidden size of 128 it gains nothing on a CPU, and float16 on
    a CPU is many times slower than float32. Weights stay in float32, so nothing is saved on disk.
    """

    name: ClassVar = "mixed_precision"
    family: ClassVar = "precision"
    sets: ClassVar = ("autocast",)

    dtype: Literal["bfloat16", "float16"] = Field(default="bfloat16", description="of matrix products and activations")
    inference: bool = Field(default=True, description="also autocast prefill, decode and evaluation")

    def unsupported(self, cell: Cell) -> str | None:
        """Autocast works on float32 weights alone."""
        return None if cell.dtype == "float32" else f"mixed precision needs float32 weights; the suite's dtype is {cell.dtype}"

    def train(self, step: TrainStep, ctx: Context) -> TrainStep:
        """Autocast the loss; for float16 also scale it."""
        import torch

        loss = step.loss

        def autocast_loss(model: "nn.Module", batch: "Batch") -> "Tensor":
            with torch.autocast(ctx.device.type, getattr(torch, self.dtype)):
                return loss(model, batch)

        step = replace(step, loss=autocast_loss)
        return _scaled(step, torch.amp.GradScaler(ctx.device.type)) if self.dtype == "float16" else step

    def infer(self, inference: Inference, ctx: Context) -> Inference:
        """Autocast every way the model is used."""
        if not self.inference:
            return inference

        def autocast(part: "Callable[..., Any]") -> "Callable[..., Any]":
            def run(*arguments: Any) -> Any:
                import torch

                with torch.autocast(ctx.device.type, getattr(torch, self.dtype)):
                    return part(*arguments)

            return run

        return replace(
            inference,
            logits=autocast(inference.logits),
            prefill=autocast(inference.prefill),
            decode=autocast(inference.decode),
        )


def _scaled(step: TrainStep, scaler: Any) -> TrainStep:
    """Scale the loss before backward, unscale before the update, and leave out an update whose gradients are not finite."""
    loss, optimizer = step.loss, step.optimizer

    def forward_backward(current: TrainStep, batch: "Batch") -> "Tensor":
        value = current.loss(current.model, batch)
        scaler.scale(value).backward()
        return value.detach()

    def update(current: TrainStep) -> None:
        scaler.step(optimizer)
        scaler.update()
        if current.schedule:
            current.schedule.step()
        optimizer.zero_grad()

    return replace(step, loss=loss, forward_backward=forward_backward, update=update)


@hookimpl
def register_techniques(register: "Callable[[type[Technique]], None]") -> None:
    """Register mixed precision."""
    register(MixedPrecision)
