"""A model in parts on several ranks, gathered layer by layer. This module needs torch."""

from functools import partial
from typing import Literal

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard

from effbench.plugin.layers import layer_stacks


def shard(
    model: nn.Module, mesh: DeviceMesh, *, precision: Literal["float32", "bfloat16"], reshard: bool, offload: bool
) -> nn.Module:
    """Leave this rank's part of every parameter: layers are gathered one by one, the rest with the model that has them.

    A wrapper that can be merged away (peft's) leaves a model that has to work by itself: that one has the rest then, and the
    wrapper what it has beside it.
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
    for part in _put_beside(model):
        share(part)
    inner: nn.Module = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]  # a method
    share(inner)
    shared = {id(parameter) for parameter in inner.parameters()}
    if any(id(parameter) not in shared for parameter in model.parameters()):
        share(model)
    _gather_once(model)
    return model


def _put_beside(model: nn.Module) -> list[nn.Module]:
    """What a wrapper put beside the whole model, which may be called by itself: an encoder of virtual tokens."""
    base = getattr(model, "base_layer", None)
    return [part for part in model.children() if part is not base] if isinstance(base, nn.Module) else []


def settle(model: nn.Module) -> None:
    """Ready for inference: what a merge put in place of parts is what is gathered, and nothing stays whole."""
    model._apply(lambda tensor: tensor)  # FSDP looks at its parts again, as after any move
    for module in _sharded(model):
        module.set_reshard_after_forward(True, recurse=False)


def _gather_once(model: nn.Module) -> None:
    """FSDP keeps the tensors that it gathers into: made in inference mode, as evaluation might, they would not train."""
    for module in _sharded(model):
        module.unshard()
        module.reshard()


def _sharded(model: nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]
