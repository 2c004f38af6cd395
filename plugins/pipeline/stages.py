"""Stages: parts of a model that keep its own forward pass and the names of its parameters."""

import copy
from collections.abc import Callable, Container
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh

from .layouts import Layout


@dataclass(frozen=True)
class Line:
    """The ranks of one pipeline; stage s is on rank s mod p, as interleaving has it, so a rank has every p-th stage."""

    mesh: DeviceMesh
    count: int
    """Stages."""
    layout: Layout
    tied: bool
    """Whether the head's weight is that of the embeddings, which the first and the last rank then both have."""

    @cached_property
    def group(self) -> ProcessGroup:
        """The ranks."""
        return self.mesh.get_group("pp")

    @cached_property
    def rank(self) -> int:
        """This one's place among them."""
        return self.mesh.get_local_rank("pp")

    @cached_property
    def ranks(self) -> int:
        """How many there are."""
        return self.group.size()

    @property
    def mine(self) -> range:
        """Stages of this rank."""
        return range(self.rank, self.count, self.ranks)

    def cut(self, model: nn.Module) -> nn.Module:
        """What this rank holds of the whole model: its stages together."""
        number = len(_layers(model, self.layout))
        own = {layer for stage in self.mine for layer in self.layers_of(stage, number)}
        return _part(model, self.layout, own, first=self.rank == 0, last=self.rank == self.ranks - 1)

    def stage(self, model: nn.Module, number: int) -> "Stage":
        """One stage of what `cut` gave; it shares its parameters."""
        last = number == self.count - 1
        if len(self.mine) == 1:
            return Stage(model, number, last=last)
        layers = self.layers_of(number, len(_layers(model, self.layout)))
        return Stage(_part(bare(model), self.layout, layers, first=number == 0, last=last), number, last=last)

    def layers_of(self, stage: int, layers: int) -> range:
        """Layers are spread evenly; where they do not divide, later stages have one more."""
        return range(stage * layers // self.count, (stage + 1) * layers // self.count)


@dataclass(frozen=True)
class Stage:
    """One part of the model in the pipeline."""

    module: nn.Module
    """The model with nothing but this stage's parts: its `logits` are hidden states where there is no head."""
    number: int
    last: bool

    def run(self, use: Callable[[nn.Module], Tensor], received: Tensor | None) -> tuple[Tensor, Tensor]:
        """Let `use`, a loss or a way of inference, have the model: what it returned, and the hidden states (or logits).

        Every stage goes through the same `use`, so whatever techniques put around it, autocast say, holds for all of them.
        """
        standing = _Standing(self, received)
        return use(standing), standing.output


class _Standing(nn.Module):
    """Stands for the whole model where one is asked for, and runs a stage of it on what the stage before gave."""

    def __init__(self, stage: Stage, received: Tensor | None) -> None:
        super().__init__()
        self.stage, self.received = stage, received
        self.config = getattr(stage.module, "config", None)
        self.output = torch.empty(0)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **inputs: Any) -> Any:
        if not self.stage.last:  # labels and logits_to_keep are for the head
            inputs = {"use_cache": inputs.get("use_cache")}
        tokens = {"input_ids": input_ids} if self.received is None else {"inputs_embeds": self.received}
        output = self.stage.module(**tokens, attention_mask=attention_mask, **inputs)
        self.output = output.logits
        if not self.stage.last:
            output.loss = output.logits.new_zeros(())
        return output


def line(mesh: DeviceMesh, stages_per_rank: int, layout: Layout, model: nn.Module) -> Line:
    """The pipeline that this rank is part of, for a model that is still whole."""
    found = Line(mesh, 0, layout, tied=_head(model, layout).weight is embedding(model, layout).weight)
    return replace(found, count=found.ranks * stages_per_rank)


def bare(model: nn.Module) -> nn.Module:
    """Without DistributedDataParallel around it."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def embedding(model: nn.Module, layout: Layout) -> Any:
    """The module that embeds tokens, or what stands in its place."""
    return getattr(_decoder(model, layout), layout.embedding)


def _part(model: nn.Module, layout: Layout, layers: Container[int], *, first: bool, last: bool) -> nn.Module:
    """The model without the layers, embeddings and head that it is not to have; modules that stay are shared.

    A layer that is left out hands on its input: so indices, and all that goes by them, remain those of the whole model.
    """
    decoder, head = _decoder(model, layout), _head(model, layout)
    replaced: dict[nn.Module, nn.Module] = {
        layer: _Same() for number, layer in enumerate(_layers(model, layout)) if number not in layers
    }
    if not first:
        if layout.dropout:
            replaced[getattr(decoder, layout.dropout)] = _Same()
        if layout.positions:
            replaced[getattr(decoder, layout.positions)] = _Nothing()
        embed = getattr(decoder, layout.embedding)
        if not (last and getattr(head, "weight", None) is getattr(embed, "weight", embed)):
            replaced[embed] = _Same()
    if not last:
        replaced |= {getattr(decoder, layout.norm): _Same(), head: _Same()}
    return _with(model, replaced)


def _with(module: nn.Module, replaced: dict[nn.Module, nn.Module]) -> nn.Module:
    """A copy of the module with other modules in it; what has none of them inside is shared."""
    if module in replaced:
        return replaced[module]
    children = {name: child and _with(child, replaced) for name, child in module._modules.items()}
    if all(children[name] is child for name, child in module._modules.items()):
        return module
    shell = copy.copy(module)
    shell._modules = children
    return shell


def _decoder(model: nn.Module, layout: Layout) -> nn.Module:
    """The module that has the layers."""
    return next(m for m in model.modules() if isinstance(m._modules.get(layout.layers), nn.ModuleList))


def _layers(model: nn.Module, layout: Layout) -> nn.ModuleList:
    layers: nn.ModuleList = getattr(_decoder(model, layout), layout.layers)
    return layers


def _head(model: nn.Module, layout: Layout) -> Any:
    return next(m._modules[layout.head] for m in model.modules() if layout.head in m._modules)


class _Same(nn.Module):
    """Hands on hidden states."""

    def forward(self, hidden: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden


class _Nothing(nn.Module):
    """Adds no positions: the first stage did."""

    def forward(self, *_: Any) -> Tensor:
        return torch.zeros(())
