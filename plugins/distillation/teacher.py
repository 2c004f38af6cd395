"""The teacher: the untouched model, tuned first where the workload needs it."""

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import nn

from effbench.plugin import Context
from effbench.plugin.technique import Batch
from effbench.worker import defaults

if TYPE_CHECKING:
    from . import Distillation


def teacher_for(options: "Distillation", ctx: Context) -> nn.Module:
    """A frozen teacher on the trial's device."""
    teacher = ctx.base_model()
    if options.attention:
        teacher.set_attn_implementation("eager")  # type: ignore[operator]  # a method of transformers' models
    if options.teacher_steps:
        _tune(teacher, options.teacher_steps, options.teacher_lr or ctx.cell.lr, ctx)
    return teacher.requires_grad_(False).eval()


def _tune(teacher: nn.Module, steps: int, lr: float, ctx: Context) -> None:
    """Full fine-tuning just as the harness trains a model; data-parallel ranks average gradients, so all have one teacher."""
    parameters = list(teacher.parameters())
    step = defaults.train_step(teacher, parameters, ctx.cell.model_copy(update={"steps": steps, "lr": lr}))
    group = ctx.mesh.get_group("dp") if ctx.mesh is not None and ctx.cell.data_ranks > 1 else None
    teacher.train()
    for batch in ctx.calibration(steps):
        step.forward_backward(step, _share(batch, ctx))
        if group is not None:
            for parameter in parameters:
                if parameter.grad is not None:
                    dist.all_reduce(parameter.grad.div_(ctx.cell.data_ranks), group=group)
        step.update(step)
    torch.cuda.empty_cache()  # what the teacher's optimizer held; nothing on a CPU


def _share(batch: Batch, ctx: Context) -> Batch:
    """This data-parallel rank's rows."""
    if ctx.mesh is None or ctx.cell.data_ranks == 1:
        return batch
    rank = ctx.mesh.get_local_rank("dp")
    return {name: tensor.chunk(ctx.cell.data_ranks)[rank] for name, tensor in batch.items()}
