"""Data parallelism, on PyTorch's DistributedDataParallel."""

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from effbench.plugin import Cell, Context, Technique, TrainStep, hookimpl


class DDP(Technique):
    """Every rank trains a whole copy on its share of the batch; gradients are averaged (Li et al. 2020, arXiv 2006.15704).

    Buckets of gradients are exchanged while the backward pass still runs, so communication hides behind it where there is
    enough of it. Nothing is saved in memory: each rank holds the weights, gradients and optimizer state of the whole model. It
    does not help where ranks share cores, nor where a step is short beside the exchange of gradients, 2 (N - 1) / N of
    their bytes. Prompts are shared out as well: inference runs on every rank's own part without communication.
    """

    name: ClassVar = "ddp"
    family: ClassVar = "parallelism"
    dimension: ClassVar = "dp"

    bucket_mb: float = Field(default=25.0, gt=0, description="MiB of gradients exchanged at once")

    def memory(self, cell: Cell, phase: Literal["train", "infer"]) -> float:
        """A whole copy on every rank; buckets are the gradients themselves (`gradient_as_bucket_view`)."""
        return 0.0

    def train(self, step: TrainStep, ctx: Context) -> TrainStep:
        """Exchange gradients in the backward pass; the model itself stays what it was, for techniques that come after."""
        if ctx.mesh is None:
            return step  # a single rank
        import warnings

        from torch.nn.parallel import DistributedDataParallel

        with warnings.catch_warnings():
            # torch 2.13 renames broadcast_buffers; the oldest that effbench works with knows the old name alone.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            wrapped = DistributedDataParallel(
                step.model,
                device_ids=[ctx.device.index] if ctx.device.type == "cuda" else None,
                process_group=ctx.mesh.get_group("dp"),
                bucket_cap_mb=self.bucket_mb,
                gradient_as_bucket_view=True,
                broadcast_buffers=False,  # rotary frequencies and the like are the same on every rank
            )
        return replace(step, model=wrapped)


@hookimpl
def register_techniques(register: "Callable[[type[Technique]], None]") -> None:
    """Register DDP."""
    register(DDP)
