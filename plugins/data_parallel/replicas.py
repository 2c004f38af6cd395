"""Whole copies of a model on several ranks: their gradients averaged, their optimizer's state shared out. This needs torch."""

import warnings
from dataclasses import replace
from inspect import signature
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from effbench.plugin import Context, TrainStep


def averaging(model: nn.Module, ctx: Context, bucket_mb: float, *, compressed: bool = False) -> nn.Module:
    """The model with a backward pass that leaves the mean of all ranks' gradients."""
    group = ctx.mesh.get_group("dp") if ctx.mesh is not None else None
    with warnings.catch_warnings():
        # torch 2.13 renames broadcast_buffers; the oldest that effbench works with knows the old name alone.
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        wrapped = DistributedDataParallel(
            model,
            device_ids=[ctx.device.index] if ctx.device.type == "cuda" else None,
            process_group=group,
            bucket_cap_mb=bucket_mb,
            gradient_as_bucket_view=True,
            broadcast_buffers=False,  # rotary frequencies and the like are the same on every rank
        )
    if compressed:
        wrapped.register_comm_hook(group, _in_bfloat16)
    return wrapped


def _in_bfloat16(group: dist.ProcessGroup, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    """PyTorch's hook under another name: by its own DDP allows it on CUDA alone, though gloo adds bfloat16 as well."""
    return bf16_compress_hook(group, bucket)


def sharing_state(step: TrainStep, model: nn.Module, ctx: Context) -> TrainStep:
    """The step on `model`, each rank updating the weights whose state it has and sending them to the others."""
    from torch.distributed.optim import ZeroRedundancyOptimizer  # a slow import that `ddp` has no use for

    def make(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        group = ctx.mesh.get_group("dp") if ctx.mesh is not None else None
        kind = type(step.optimizer)
        settings = {
            name: step.optimizer.defaults[name] for name in signature(kind).parameters if name in step.optimizer.defaults
        }
        sharded = ZeroRedundancyOptimizer(groups, optimizer_class=kind, process_group=group, **settings)
        sharded.state = sharded.optim.state  # where an optimizer's state is looked for, and it alone is held here
        return sharded

    return replace(step.with_optimizer(make), model=model)
