"""Pipeline parallelism: the stack of layers is cut into stages, one or several per rank. This card needs no torch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from effbench.plan.memory import untouched_bytes
from effbench.plugin import Cell, Context, Inference, LoadRequest, Metric, Technique, TrainStep, hookimpl

from .layouts import LAYOUTS

if TYPE_CHECKING:
    from torch import nn

    from .stages import Line

_CHANGE_THE_MODEL = ("peft", "pruning", "quantization", "attention")


class Pipeline(Technique):
    """Stages of layers on ranks, which microbatches pass one after another (Huang et al. 2019, arXiv 1811.06965).

    A rank holds the weights, gradients, optimizer state and activations of its own layers alone, and ranks exchange nothing but
    hidden states and their gradients. It costs the bubble, in which a rank waits for the first microbatches to arrive and the
    last ones to come back: (p - 1) / (m + p - 1) of a step of p ranks and m microbatches. 1F1B has the same bubble as GPipe and
    keeps p microbatches' activations, not m. Interleaving gives each rank v stages: (p - 1) / (v m + p - 1), for v times the
    messages (Narayanan et al. 2021, arXiv 2104.04473). It does not help where microbatches are too small to fill the device,
    nor where stages are unequal: the last one has the head. A forward pass has no microbatches: inference is no faster than on
    one rank. Weights that embeddings and head share are on both ends, which add up their gradients. Under data parallelism
    gradients are exchanged after the last microbatch.
    """

    name: ClassVar = "pipeline"
    family: ClassVar = "parallelism"
    dimension: ClassVar = "pp"
    metrics: ClassVar = (
        Metric(
            "pipeline.bubble_formula", "share", "lower", "(p - 1) / (v m + p - 1): p ranks, m microbatches, v stages per rank."
        ),
    )

    ranks: int | None = Field(
        default=None, ge=1, description="ranks in a row; those that the rest of the stack leaves, if left out"
    )
    schedule: Literal["gpipe", "1f1b", "interleaved"] = Field(
        default="1f1b", description="order of forward and backward passes"
    )
    microbatches: int = Field(default=4, ge=1, description="parts that a data-parallel rank's batch is cut into")
    chunks: int = Field(default=2, ge=2, description="stages per rank; schedule = interleaved alone")

    @property
    def stages_per_rank(self) -> int:
        """The formula's v."""
        return self.chunks if self.schedule == "interleaved" else 1

    def degree(self) -> int | None:
        """As asked for."""
        return self.ranks

    def unsupported(self, cell: Cell) -> str | None:
        """The model must be one that is known, and everything must divide."""
        ranks, batch = cell.parallel.get(self.name, 1), cell.batch_size // cell.data_ranks
        stages = ranks * self.stages_per_rank
        if cell.facts.model_type not in LAYOUTS:
            return f"stages are known of {', '.join(LAYOUTS)}, not of {cell.facts.model_type}"
        if ranks == 1:
            return None
        if stages > cell.facts.layers:
            return f"{stages} stages need as many layers, and the model has {cell.facts.layers}"
        if batch % self.microbatches:
            return f"a batch of {batch} per data-parallel rank cannot be cut into {self.microbatches} microbatches"
        return self._no_schedule(ranks)

    def _no_schedule(self, ranks: int) -> str | None:
        if self.schedule == "1f1b" and self.microbatches < ranks:
            return f"1f1b needs a microbatch for each of {ranks} ranks, not {self.microbatches}: use gpipe"
        rounds = max(1, self.microbatches // ranks)
        if self.schedule == "interleaved" and self.microbatches % rounds:
            return f"interleaved takes microbatches in {rounds} equal rounds, and {self.microbatches} do not divide so"
        return None

    def unsupported_after(self, earlier: Sequence[Technique]) -> str | None:
        """What needs the whole model in one place cannot be had."""
        for technique in earlier:
            if "virtual tokens" in technique.sets:
                return f"{technique.name} puts tokens before the first layer, and later stages would not know"
            if technique.family == "pruning" and getattr(technique, "at", "apply") != "apply":
                return f'{technique.name} compares all layers\' weights: use at = "apply", when they are still on one rank'
        return _no_teacher(earlier)

    def unsupported_before(self, later: Sequence[Technique]) -> str | None:
        """What changes the model sees all of it only before it is cut."""
        for technique in later:
            if technique.family in _CHANGE_THE_MODEL:
                return f"list {technique.name} before {self.name}: it is made for the whole model"
        return _no_teacher(later)

    def unsupported_decoding(self, cell: Cell) -> str | None:
        """There are no microbatches to fill the stages with."""
        if cell.parallel.get(self.name, 1) == 1:
            return None
        return "each token would pass all stages before the next one, with all ranks but one waiting"

    def memory(self, cell: Cell, phase: Literal["train", "infer"]) -> float:
        """The fullest rank has at least the mean of all; of activations the first stage keeps p of m microbatches, or all."""
        ranks = cell.parallel.get(self.name, 1)
        kept = 1.0 if phase == "infer" or self.schedule == "gpipe" or ranks == 1 else min(1.0, ranks / self.microbatches)
        return untouched_bytes(cell, phase) * (kept / ranks - 1)

    def load(self, request: LoadRequest) -> LoadRequest:
        """No device holds the whole model."""
        return replace(request, host=True)

    def apply(self, model: "nn.Module", ctx: Context) -> "nn.Module":
        """Keep this rank's stages."""
        if ctx.mesh is not None:
            from .stages import line

            layout = LAYOUTS[ctx.cell.facts.model_type]
            found = ctx.kept[self.name] = line(ctx.mesh, self.stages_per_rank, layout, model)
            model = found.cut(model)
        return model.to(ctx.device)

    def train(self, step: TrainStep, ctx: Context) -> TrainStep:
        """Run the schedule; every stage calls the step's loss, and the last one's is the loss."""
        if ctx.mesh is None:
            return step
        from .training import Pipelined

        return replace(step, forward_backward=Pipelined(self._line(ctx), self.schedule, self.microbatches))

    def counted(self, ctx: Context) -> Mapping[str, float]:
        """The bubble that equal stages have."""
        if ctx.mesh is None:
            return {}
        ranks = self._line(ctx).ranks
        return {"pipeline.bubble_formula": (ranks - 1) / (self.stages_per_rank * self.microbatches + ranks - 1)}

    def infer(self, inference: Inference, ctx: Context) -> Inference:
        """Forward passes from stage to stage."""
        if ctx.mesh is None:
            return inference
        from .using import Relay

        return Relay(self._line(ctx)).over(inference)

    def _line(self, ctx: Context) -> "Line":
        found: Line = ctx.kept[self.name]
        return found


def _no_teacher(others: Sequence[Technique]) -> str | None:
    """A student's loss is taken from all of its states, or a teacher is run at every stage."""
    teacher = next((technique for technique in others if technique.family == "distillation"), None)
    return f"{teacher.name} compares the whole model with its teacher, and a stage has only a part" if teacher else None


@hookimpl
def register_techniques(register: "Callable[[type[Technique]], None]") -> None:
    """Register the pipeline."""
    register(Pipeline)
