"""Data parallelism with the optimizer's state in parts."""

from typing import ClassVar, Literal

from pydantic import Field

from effbench.plugin import Cell, Context, Technique, TrainStep


class ZeRO1(Technique):
    """As `ddp`, but each rank keeps the optimizer's state of its own part of the weights (Rajbhandari 2020, arXiv 1910.02054).

    AdamW keeps two values for every weight: N ranks save (N - 1) / N of them. A rank updates the weights whose state it has and
    sends them to all others: half as much again to communicate as `ddp` has, after the backward pass, where nothing hides it.
    Weights are dealt out whole, largest first: where one embedding is most of the model, the rank that has it saves little. It
    does not help where weights and activations fill the memory (see `fsdp`), nor beside adapters, whose state is small. In
    inference it changes nothing.
    """

    name: ClassVar = "zero1"
    family: ClassVar = "parallelism"
    dimension: ClassVar = "dp"
    sets: ClassVar = ("optimizer",)
    imports: ClassVar = (f"{__package__}.replicas", "torch.distributed.optim")

    bucket_mb: float = Field(default=25.0, gt=0, description="MiB of gradients exchanged at once")

    def memory(self, cell: Cell, phase: Literal["train", "infer"]) -> float:
        """AdamW's two moments are shared out, at best evenly."""
        if phase == "infer":
            return 0.0
        return -2 * (1 - 1 / cell.data_ranks) * cell.weight_bytes

    def train(self, step: TrainStep, ctx: Context) -> TrainStep:
        """Average gradients as `ddp` does, and share out the optimizer."""
        if ctx.mesh is None:
            return step  # a single rank
        from .replicas import averaging, sharing_state

        return sharing_state(step, averaging(step.model, ctx, self.bucket_mb), ctx)
