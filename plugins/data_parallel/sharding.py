"""A model in parts on several ranks, gathered layer by layer. This module needs torch."""

from functools import partial
from typing import Literal

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from transformers import PreTrainedModel

from effbench.plugin.layers import layer_stacks


def shard(
    model: nn.Module, mesh: DeviceMesh, *, precision: Literal["float32", "bfloat16"], reshard: bool, offload: bool
) -> nn.Module:
    """Leave this rank's part of every parameter: layers are gathered one by one, the rest with the model that has them.

    That is the innermost model, so that it still works by itself when a wrapper is merged away; what such a wrapper has besides
    (virtual tokens, say) is gathered with it.
    """
    types = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    share = partial(
        fully_shard,
        mesh=mesh,
        mp_policy=types if precision == "bfloat16" else MixedPrecisionPolicy(),
        offload_policy=CPUOffloadPolicy() if offload else OffloadPolicy(),
    )
    for stack in layer_stacks(model):
        for layer in stack:
            share(layer, reshard_after_forward=reshard)
    inner = next((module for module in model.modules() if isinstance(module, PreTrainedModel)), model)
    share(inner)
    shared = {id(parameter) for parameter in inner.parameters()}
    if any(id(parameter) not in shared for parameter in model.parameters()):
        share(model)
    _gather_once(model)
    return model


def _gather_once(model: nn.Module) -> None:
    """FSDP keeps the tensors that it gathers into: made in inference mode, as evaluation might, they would not train."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.unshard()
            module.reshard()
