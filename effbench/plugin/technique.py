"""The technique contract: each method takes a thing and returns a thing of the same kind, by default unchanged.

A stack is then ordinary function composition in the suite's order. `load` and `apply` act before training, `infer` after it.
The harness owns data, loop, clock and synchronisation; a technique never measures itself.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from effbench.plugin.cell import Cell
from effbench.plugin.meter import Metric
from effbench.plugin.model import LoadRequest

if TYPE_CHECKING:
    from torch import Tensor, device, nn
    from torch.distributed.device_mesh import DeviceMesh
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

Family = Literal["peft", "distillation", "pruning", "quantization", "attention", "precision", "parallelism", "other"]
Dimension = Literal["dp", "tp", "pp", "cp"]
Batch = dict[str, "Tensor"]
"""input_ids, attention_mask and labels, each int64 of shape (B, n); labels are aligned with the inputs, -100 where none."""


@dataclass(frozen=True)
class TrainStep:
    """One optimisation step in three replaceable parts; use `dataclasses.replace`.

    `forward_backward` and `update` are given the whole step as it stands after every technique, so a technique that wraps
    `loss` is seen by one that replaces `forward_backward`, whichever of them the suite lists first.
    """

    model: "nn.Module"
    optimizer: "Optimizer"
    schedule: "LRScheduler | None"
    loss: "Callable[[nn.Module, Batch], Tensor]"
    forward_backward: "Callable[[TrainStep, Batch], Tensor]"
    """Gives the loss, a detached scalar; an empty tensor on a rank that does not have it, such as a pipeline's early stage."""
    update: "Callable[[TrainStep], None]"

    def run(self, batch: Batch) -> "Tensor":
        """Take one step and return its loss, as `forward_backward` gave it."""
        loss = self.forward_backward(self, batch)
        self.update(self)
        return loss

    def with_optimizer(self, make: "Callable[[list[dict[str, Any]]], Optimizer]") -> "TrainStep":
        """The step with another optimizer over the same parameters and learning rates, and the same schedule for it.

        `make` is given parameter groups, each with `params` and `lr`.
        """
        from torch.optim.lr_scheduler import LambdaLR

        groups = self.optimizer.param_groups
        optimizer = make([{"params": group["params"], "lr": group.get("initial_lr", group["lr"])} for group in groups])
        if self.schedule is None:
            return replace(self, optimizer=optimizer)
        if not isinstance(self.schedule, LambdaLR):
            raise TypeError(f"a {type(self.schedule).__name__} cannot be moved to another optimizer")
        return replace(self, optimizer=optimizer, schedule=LambdaLR(optimizer, self.schedule.lr_lambdas[0]))


@dataclass(frozen=True)
class Inference:
    """A trained model in use; each part is given the Inference as it stands after every technique."""

    model: "nn.Module"
    logits: "Callable[[Inference, Tensor, Tensor], Tensor]"
    """(inference, ids (B, n), mask (B, n)) → logits (B, n, V), aligned with the input. Quality uses this alone."""
    prefill: "Callable[[Inference, Tensor, Tensor], tuple[Tensor, Any]]"
    """(inference, ids, mask) → (logits of the last position (B, V), cache)."""
    decode: "Callable[[Inference, Tensor, Any], tuple[Tensor, Any]]"
    """(inference, ids (B, 1), cache) → (logits (B, V), cache)."""


@dataclass(frozen=True)
class Context:
    """What a technique may know of the trial it is part of."""

    cell: Cell
    device: "device"
    rank: int
    world_size: int
    seed: int
    base_model: "Callable[[], nn.Module]"
    """A fresh, untouched copy of the model, for instance as a teacher."""
    calibration: "Callable[[int], list[Batch]]"
    """n batches of the training split, at the cell's shapes: whole and the same on every rank, so that all choose alike."""
    mesh: "DeviceMesh | None" = None
    kept: dict[str, Any] = field(default_factory=dict)
    """What a technique carries from one method to a later one, under its name: techniques themselves are frozen."""


class Technique(BaseModel):
    """One way to make training or inference cheaper. Fields are its options: typed, validated, frozen.

    The class docstring's first line is its summary in `effbench list`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]
    family: ClassVar[Family]
    requires: ClassVar[tuple[str, ...]] = ()
    """Distributions beyond effbench's own dependencies, as pip names them."""
    imports: ClassVar[tuple[str, ...]] = ()
    """Modules that the worker imports once, before it forks, so that no trial pays for them."""
    sets: ClassVar[tuple[str, ...]] = ()
    """Exclusive settings; two techniques of a stack that set the same one are refused when the suite is planned."""
    compiles: ClassVar[bool] = False
    """Whether first calls compile: in inference they are then no samples, and a trial has the suite's `compile_s` on top."""
    dimension: ClassVar[Dimension | None] = None
    """The mesh dimension that a parallel technique splits work along."""
    shards: ClassVar[bool] = False
    """Whether several ranks hold a part of each weight from `apply` on. Those are DTensors, and assigning to `.data` of one is
    lost without an error: what works so cannot stand before it."""
    metrics: ClassVar[tuple[Metric, ...]] = ()
    """What `counted` gives, each named `technique.what`."""

    def unsupported(self, cell: Cell) -> str | None:
        """Why this cell cannot exist with this technique, or None. Called when planning, without torch."""
        return None

    def unsupported_after(self, earlier: "Sequence[Technique]") -> str | None:
        """Why this technique cannot stand behind those before it in the stack, or None. Called when planning, without torch.

        Their names do not matter: `sets`, `family` and the common options `at` and `merged` tell what they do, and when.
        """
        return None

    def unsupported_before(self, later: "Sequence[Technique]") -> str | None:
        """Why this technique cannot stand before those behind it, or None: as `unsupported_after`, where this one knows why."""
        return None

    def unsupported_phase(self, cell: Cell, phase: Literal["train", "infer"]) -> str | None:
        """Why one phase must be skipped while the rest is measured, or None. Called when planning, without torch."""
        return None

    def unsupported_decoding(self, cell: Cell) -> str | None:
        """Why tokens cannot be generated one by one while the rest of inference is measured. Called when planning."""
        return None

    def memory(self, cell: Cell, phase: Literal["train", "infer"]) -> float | None:
        """Bytes that one rank holds at a phase's peak beyond what the untouched model needs there; negative where it saves.

        None, where that is not known. Called when planning, without torch: a phase for which the untouched model's need and
        that of every technique of the stack pass what there is, is skipped. So name no more than it certainly takes.
        """
        return None

    def leaks(self, cell: Cell) -> str | None:
        """How this technique lets a causal model see later tokens, or None. Called when planning, without torch.

        A model that has seen the next token predicts it well: such a row is shown, but its quality means nothing.
        """
        return None

    def degree(self) -> int | None:
        """Over how many ranks this technique spreads along its dimension; None: those that the rest of the stack leaves."""
        return None

    def load(self, request: LoadRequest) -> LoadRequest:
        """Before weights exist: dtype, quantization, attention implementation."""
        return request

    def apply(self, model: "nn.Module", ctx: Context) -> "nn.Module":
        """Before training: wrap, swap, freeze, shard. The optimizer is built afterwards."""
        return model

    def teacher(self, ctx: Context) -> "nn.Module | None":
        """The model that this technique learns from, ready for it; asked for after `apply`, where there is training.

        It is kept as `ctx.kept[name]`. The harness times this, and records the teacher's quality beside the stack's.
        """
        return None

    def train(self, step: TrainStep, ctx: Context) -> TrainStep:
        """Change how a step is taken."""
        return step

    def counted(self, ctx: Context) -> Mapping[str, float]:
        """What this technique counted while it trained, by the names of its `metrics`; asked for once, after training."""
        return {}

    def infer(self, inference: Inference, ctx: Context) -> Inference:
        """After training: merge, convert, compile. Quality and time are measured on what this returns."""
        return inference

    def store(self, tensors: "dict[str, Tensor]", ctx: Context) -> "dict[str, Tensor]":
        """What is written to disk: packed, sparse, or as it is."""
        return tensors

    def restore(self, tensors: "dict[str, Tensor]", model: "nn.Module", ctx: Context) -> "dict[str, Tensor]":
        """The inverse of `store`: what `model.load_state_dict` takes, made of what `store` gave.

        `model` went through `load`, `apply` and `infer` of the same stack without being trained, and has the same names in its
        state dict. Where loading alone is not enough (layers of another size, packed weights), change the model here.
        Techniques are asked in reverse order.
        """
        return tensors
