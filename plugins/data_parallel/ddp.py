"""Data parallelism, on PyTorch's DistributedDataParallel."""

from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from effbench.plugin import Cell, Context, Technique, TrainStep


class DDP(Technique):
    """Every rank trains a whole copy on its share of the batch; gradients are averaged (Li et al. 2020, arXiv 2006.15704).

    Buckets of gradients are exchanged while the backward pass still runs, so communication hides behind it where there is
    enough of it. Nothing is saved in memory: each rank holds the weights, gradients and optimizer state of the whole model. It
    does not help where ranks share cores, nor where a step is short beside the exchange of gradients, 2 (N - 1) / N of
    their bytes; sent in bfloat16 it is half of that, and each gradient loses all but 8 bits of its mantissa. Prompts are
    shared out as well: inference runs on every rank's own part without communication.
    """

    name: ClassVar = "ddp"
    family: ClassVar = "parallelism"
    dimension: ClassVar = "dp"
    imports: ClassVar = (f"{__package__}.replicas",)

    bucket_mb: float = Field(default=25.0, gt=0, description="MiB of gradients exchanged at once")
    compression: Literal["none", "bf16"] = Field(
        default="none", description="number type that gradients are sent and summed in: their own, or bfloat16"
    )

    def memory(self, cell: Cell, phase: Literal["train", "infer"]) -> float:
        """A whole copy on every rank; buckets are the gradients themselves (`gradient_as_bucket_view`)."""
        return 0.0

    def train(self, step: TrainStep, ctx: Context) -> TrainStep:
        """Exchange gradients in the backward pass; the model itself stays what it was, for techniques that come after."""
        if ctx.mesh is None:
            return step  # a single rank
        from .replicas import averaging

        return replace(step, model=averaging(step.model, ctx, self.bucket_mb, compressed=self.compression == "bf16"))
