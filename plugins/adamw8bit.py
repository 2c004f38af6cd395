"""AdamW with moments in 8 bits, on bitsandbytes."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from effbench.plugin import Cell, Context, InputError, Technique, TrainStep, hookimpl

if TYPE_CHECKING:
    from torch.optim import Optimizer


class AdamW8bit(Technique):
    """AdamW whose two moments are 8-bit codes with a scale for each block of 256 (Dettmers et al. 2021, arXiv 2110.02861).

    The optimizer's state takes about a quarter of its bytes; tensors of fewer than 4,096 values keep theirs in 32 bits. Codes
    are spaced for what moments look like, so training follows that of 32 bits closely. Rounding them at each update is one
    fused kernel on CUDA and several passes on a CPU, where it saves memory alone. It does not help where little is trained
    (adapters), nor where activations fill the memory. Weights must be whole on each rank, not sharded. Needs bitsandbytes.
    """

    name: ClassVar = "adamw8bit"
    family: ClassVar = "other"
    requires: ClassVar = ("bitsandbytes",)
    imports: ClassVar = ("bitsandbytes",)
    sets: ClassVar = ("optimizer",)

    def memory(self, cell: Cell, phase: Literal["train", "infer"]) -> float:
        """A byte instead of a value, twice for each weight; what small tensors keep is left out."""
        return -2.0 * cell.facts.approximate_parameters * (cell.value_bytes - 1) if phase == "train" else 0.0

    def train(self, step: TrainStep, ctx: Context) -> TrainStep:
        """Take it in the optimizer's place, with the same learning rates and weight decay."""
        from bitsandbytes.optim import AdamW8bit as Optimizer8bit
        from torch.distributed.tensor import DTensor

        if any(isinstance(parameter, DTensor) for parameter in step.model.parameters()):
            raise InputError("adamw8bit: bitsandbytes cannot update sharded weights; use it with ddp")

        def make(groups: "list[dict[str, Any]]") -> "Optimizer":
            optimizer: Optimizer = Optimizer8bit(groups)
            return optimizer

        return step.with_optimizer(make)


@hookimpl
def register_techniques(register: "Callable[[type[Technique]], None]") -> None:
    """Register 8-bit AdamW."""
    register(AdamW8bit)
