"""A training step through the pipeline, on the schedules of torch.distributed.pipelining."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe, ScheduleInterleaved1F1B
from torch.distributed.tensor import DTensor

from effbench.plugin import TrainStep
from effbench.plugin.technique import Batch

from .stages import Line, Stage, bare, embedding

_NO_LABEL = -100

Loss = Callable[[nn.Module, Batch], Tensor]


def scheduled(name: str, stages: list[PipelineStage], microbatches: int, loss: Callable[[Tensor, Tensor], Tensor]) -> Any:
    """The order in which a rank runs its stages; gradients of microbatches add up, as `loss` weighs them."""
    options: dict[str, Any] = {"loss_fn": loss, "scale_grads": False}
    if name == "interleaved":
        return ScheduleInterleaved1F1B(list(stages), microbatches, **options)
    return (ScheduleGPipe if name == "gpipe" else Schedule1F1B)(stages[0], microbatches, **options)


class Pipelined:
    """The `forward_backward` of a pipeline: every rank runs its stages of each microbatch, in the order of a schedule."""

    def __init__(self, line: Line, schedule: str, microbatches: int) -> None:
        self._line, self._schedule, self._microbatches = line, schedule, microbatches
        self._made: dict[torch.Size, tuple[Any, list[_Module]]] = {}

    def __call__(self, current: TrainStep, batch: Batch) -> Tensor:
        """The batch's loss on the last rank, an empty tensor on the others."""
        shape = batch["input_ids"].shape
        if shape not in self._made:
            self._made[shape] = self._make(current.model, shape)
        schedule, modules = self._made[shape]
        for module in modules:
            module.loss = current.loss
        tied = embedding(bare(current.model), self._line.layout).weight if self._is_at_an_end else None
        earlier, losses = _taken(tied), []  # type: tuple[Tensor | None, list[Tensor]]
        _without_exchange(current.model, lambda: self._run(schedule, batch, losses))
        if tied is not None and tied.grad is not None:
            self._add_of_other_end(tied.grad)
            tied.grad = tied.grad if earlier is None else tied.grad.add_(earlier)
        return torch.stack(losses).sum().detach() if losses else torch.empty(0)

    def _run(self, schedule: Any, batch: Batch, losses: list[Tensor]) -> None:
        line = self._line
        first = (batch["input_ids"],) if line.rank == 0 else ()
        last = {"target": _shares(batch["labels"], self._microbatches), "losses": losses} if self._has_loss else {}
        schedule.step(*first, return_outputs=False, **last, **batch)

    def _make(self, model: nn.Module, shape: torch.Size) -> tuple[Any, list["_Module"]]:
        line = self._line
        modules = [_Module(line.stage(model, number)) for number in line.mine]
        rows, length = shape[0] // self._microbatches, shape[1]
        config: Any = bare(model).config
        parameter = next(bare(model).parameters())
        ids = torch.zeros(rows, length, dtype=torch.long, device=parameter.device)
        hidden = torch.zeros(
            rows, length, config.hidden_size, dtype=config.dtype or torch.float32, device=ids.device
        ).requires_grad_()
        stages = [
            PipelineStage(
                module,
                number,
                line.count,
                ids.device,
                input_args=ids if number == 0 else hidden,  # said here, or a whole pass would be run to find it out
                output_args=hidden.sum() if module.stage.last else hidden,
                group=line.group,
            )
            for number, module in zip(line.mine, modules, strict=True)
        ]
        return scheduled(self._schedule, stages, self._microbatches, _weighted), modules

    @property
    def _has_loss(self) -> bool:
        return self._line.rank == self._line.ranks - 1

    @property
    def _is_at_an_end(self) -> bool:
        return self._line.tied and self._line.rank in (0, self._line.ranks - 1)

    def _add_of_other_end(self, gradient: Tensor) -> None:
        """Embeddings and head are one weight, of which each end of the pipeline has computed a part of the gradient."""
        mine = gradient.to_local() if isinstance(gradient, DTensor) else gradient
        theirs = torch.empty_like(mine)
        group, peer = self._line.group, self._line.ranks - 1 - self._line.rank
        exchange = [
            dist.P2POp(dist.isend, mine, group=group, group_peer=peer),
            dist.P2POp(dist.irecv, theirs, group=group, group_peer=peer),
        ]
        for work in dist.batch_isend_irecv(exchange):
            work.wait()
        mine.add_(theirs)


class _Module(nn.Module):
    """A stage as the schedule calls it: hidden states in and out, and the loss out of the last one."""

    loss: Loss

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, received: Tensor, **batch: Tensor) -> Tensor:
        loss, output = self.stage.run(lambda model: self.loss(model, batch), None if self.stage.number == 0 else received)
        return loss if self.stage.last else output


def _weighted(loss: Tensor, share: Tensor) -> Tensor:
    return loss * share.squeeze()


def _shares(labels: Tensor, microbatches: int) -> Tensor:
    """Each microbatch's share of the tokens that the batch predicts: so weighted, their mean losses add up to the batch's."""
    counts = torch.stack([(part[:, 1:] != _NO_LABEL).sum() for part in labels.chunk(microbatches)])
    return counts / counts.sum()


def _taken(weight: nn.Parameter | None) -> Tensor | None:
    """The gradient that was there before, which the other end has too; it is put aside, or the two would be added up."""
    if weight is None:
        return None
    gradient, weight.grad = weight.grad, None
    return gradient


def _without_exchange(model: nn.Module, run: Callable[[], None]) -> None:
    """Under DistributedDataParallel gradients are exchanged once, when those of all microbatches are there.

    Its hooks wait for a backward pass that reaches each parameter; here one of zeros, which a stage's last pass is not where a
    rank has several stages.
    """
    if not isinstance(model, nn.parallel.DistributedDataParallel):
        run()
        return
    with model.no_sync():
        run()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.reducer.prepare_for_backward([])  # as `forward` does, whose output would tell which parameters are used: all
    zeros = [parameter.new_zeros(()).expand_as(parameter) for parameter in trained]
    torch.autograd.backward(trained, zeros)
