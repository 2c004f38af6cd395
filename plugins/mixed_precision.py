"""Mixed precision: autocast over float32 weights."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from effbench.plugin import Cell, Context, Inference, Metric, Technique, TrainStep, hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn

    from effbench.plugin.technique import Batch

_SKIPPED = "mixed_precision.skipped_steps"


class MixedPrecision(Technique):
    """Matrix products in 16 bits, weights and sums in 32 (Micikevicius et al. 2017, arXiv 1710.03740).

    float16 needs a loss scale, which GradScaler finds; steps whose gradients overflow on any rank are skipped on all, and
    counted. All in 16 bits, weights and optimizer too, is `bf16`. It helps where the device
    has 16-bit matrix units and matrices are large enough: with a hidden size of 128 it gains nothing on a CPU, and float16 on
    a CPU is many times slower than float32 (11× when measured). Weights stay in float32, so nothing is saved on disk, and every
    decoded token converts them again, which can cost more than the product saves: see `inference`.
    """

    name: ClassVar = "mixed_precision"
    family: ClassVar = "precision"
    sets: ClassVar = ("autocast",)
    metrics: ClassVar = (
        Metric(_SKIPPED, "steps", "lower", "Updates left out because a gradient overflowed under its loss scale.", "max"),
    )

    dtype: Literal["bfloat16", "float16"] = Field(default="bfloat16", description="of matrix products and activations")
    inference: bool = Field(default=True, description="also autocast prefill, decode and evaluation")

    def unsupported(self, cell: Cell) -> str | None:
        """Autocast works on float32 weights alone."""
        return None if cell.dtype == "float32" else f"mixed precision needs float32 weights; the suite's dtype is {cell.dtype}"

    def unsupported_after(self, earlier: Sequence[Technique]) -> str | None:
        """There is nothing to cast in a model that is loaded in 16 bits."""
        cast = next((t for t in earlier if "float type" in t.sets and getattr(t, "at", None) == "load"), None)
        return (
            f'autocast needs float32 weights: use {cast.name} with at = "infer", or leave one of the two out' if cast else None
        )

    def train(self, step: TrainStep, ctx: Context) -> TrainStep:
        """Autocast the loss; for float16 also scale it."""
        import torch

        loss = step.loss

        def autocast_loss(model: "nn.Module", batch: "Batch") -> "Tensor":
            with torch.autocast(ctx.device.type, getattr(torch, self.dtype)):
                return loss(model, batch)

        step = replace(step, loss=autocast_loss)
        if self.dtype == "bfloat16":
            return step
        ctx.kept[self.name] = Counter({_SKIPPED: 0})
        return _scaled(step, _scaler(ctx), ctx.kept[self.name])

    def counted(self, ctx: Context) -> Mapping[str, float]:
        """The steps that float16 skipped; bfloat16 has float32's range."""
        counted: Mapping[str, float] = ctx.kept.get(self.name, {})
        return counted

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


def _scaler(ctx: Context) -> Any:
    """Several ranks skip a step together: where each has its own part of the weights, one alone may overflow."""
    if ctx.world_size == 1:
        import torch

        return torch.amp.GradScaler(ctx.device.type)
    from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

    return ShardedGradScaler(ctx.device.type)


def _scaled(step: TrainStep, scaler: Any, counted: "Counter[str]") -> TrainStep:
    """Scale the loss before backward, unscale before the update, and leave out an update whose gradients are not finite.

    It goes around the parts that were there, so that masks, accumulation and clipping of techniques before it still happen.
    """
    inner_forward_backward, inner_update = step.forward_backward, step.update

    def forward_backward(current: TrainStep, batch: "Batch") -> "Tensor":
        import torch

        def scaled_loss(model: "nn.Module", batch: "Batch") -> "Tensor":
            scaled: Tensor = scaler.scale(current.loss(model, batch))
            return scaled

        value = inner_forward_backward(replace(current, loss=scaled_loss), batch)
        scale: Tensor = scaler.scale(torch.ones_like(value))  # get_scale() would wait for the device
        return value / scale

    def update(current: TrainStep) -> None:
        scaler.unscale_(current.optimizer)
        guarded: Any = _GuardedOptimizer(current.optimizer, scaler, counted)
        inner_update(replace(current, optimizer=guarded))

    return replace(step, forward_backward=forward_backward, update=update)


class _GuardedOptimizer:
    """An optimizer whose step goes through the scaler, which leaves it out where gradients are not finite."""

    def __init__(self, optimizer: Any, scaler: Any, counted: "Counter[str]") -> None:
        self._optimizer, self._scaler, self._counted = optimizer, scaler, counted

    def step(self) -> None:
        self._counted[_SKIPPED] += 1
        taken = self._optimizer.register_step_post_hook(lambda *_: self._counted.subtract([_SKIPPED]))
        self._scaler.step(self._optimizer)
        taken.remove()
        self._scaler.update()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._optimizer, name)


@hookimpl
def register_techniques(register: "Callable[[type[Technique]], None]") -> None:
    """Register mixed precision."""
    register(MixedPrecision)
