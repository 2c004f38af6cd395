"""How a module is split over ranks: its parameters are DTensors, and its forward pass computes on this rank's part of them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ParallelStyle


class Move(NamedTuple):
    """How an activation is laid out, how it must be, and how the gradient is that comes back to it.

    Redistribution is differentiable: an all-reduce of an activation is none of its gradient, and the other way round.
    """

    given: Placement
    wanted: Placement
    gradient: Placement

    def __call__(self, tensor: Tensor, mesh: DeviceMesh) -> Tensor:
        """This rank's tensor, moved."""
        given, wanted, gradient = (_normalized(placement, tensor.ndim) for placement in self)
        laid = DTensor.from_local(tensor, mesh, [given], run_check=False)
        return laid.redistribute(placements=[wanted]).to_local(grad_placements=[gradient])


INTO_COLUMNS = Move(Replicate(), Replicate(), Partial())
"""Megatron's f: nothing forward, the sum over ranks backward, because each rank's columns give a part of the gradient."""
OUT_OF_ROWS = Move(Partial(), Replicate(), Replicate())
"""Megatron's g: the sum over ranks forward, nothing backward."""
OUT_OF_ROWS_SPLIT = Move(Partial(), Shard(1), Shard(1))
"""Under sequence parallelism each rank keeps the sum at its own positions."""
SPLIT_SEQUENCE = Move(Replicate(), Shard(1), Shard(1))
JOIN_SEQUENCE = Move(Shard(1), Replicate(), Partial())
"""What column-split layers read; each gives a part of the gradient."""
SPLIT_COLUMNS = Move(Replicate(), Shard(-1), Shard(-1))
JOIN_COLUMNS = Move(Shard(-1), Replicate(), Replicate())


class Part(NamedTuple):
    """How a parameter lies on the ranks, and how the gradient is that a forward pass on one rank gives it."""

    stored: Placement
    gradient: Placement
    divided: bool = False
    """Whether each rank uses the ranks-th part of its value, because what it is added to will be summed."""


def sharded(placement: Placement) -> Part:
    """Each rank has and uses its own part."""
    return Part(placement, placement)


WHOLE = Part(Replicate(), Replicate())
"""The same on all ranks, in a computation that is the same on all."""
SHARED = Part(Replicate(), Partial())
"""The same on all ranks, each of which uses it for its own part of the activations."""
SUMMED = Part(Replicate(), Partial(), divided=True)
"""A bias of products that are still to be summed over ranks."""


@dataclass
class Split(ParallelStyle):
    """A module with these parts of its parameters, its input and its output moved."""

    known: dict[nn.Parameter, nn.Parameter]
    """Parameters that are DTensors already, so that tied ones stay tied."""
    parts: Callable[[str], Part] = lambda _: WHOLE
    """By a parameter's name."""
    entry: Move | None = None
    exit: Move | None = None
    training: bool = False
    """Whether these moves are for training alone."""
    otherwise: Move | None = None
    """The exit at other times."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        self._distribute(module, device_mesh)
        inner: Callable[..., Any] = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            moving = module.training or not self.training
            if self.entry and moving:
                args, kwargs = _with_first(lambda x: self._moved(self.entry, x, device_mesh), args, kwargs)
            with self._local(module, device_mesh.size()):
                output = inner(*args, **kwargs)
            return self._moved(self.exit if moving else self.otherwise, output, device_mesh)

        module.forward = forward  # hooks would leave parts in place when a pass is broken off
        return module

    def _moved(self, move: Move | None, tensor: Tensor, mesh: DeviceMesh) -> Tensor:
        return move(tensor, mesh) if move else tensor

    def _distribute(self, module: nn.Module, mesh: DeviceMesh) -> None:
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if parameter not in self.known:
                # Every rank has the same weights, so that each takes its part without a word.
                tensor = distribute_tensor(parameter.detach(), mesh, [self.parts(name).stored], src_data_rank=None)
                self.known[parameter] = nn.Parameter(tensor, requires_grad=parameter.requires_grad)
            module.register_parameter(name, self.known[parameter])

    @contextmanager
    def _local(self, module: nn.Module, ranks: int) -> Iterator[None]:
        """This rank's parts in the place of the module's parameters."""
        whole = dict(module._parameters)
        for name, parameter in whole.items():
            if isinstance(parameter, DTensor):
                part = self.parts(name)
                # Redistributing to where it is already makes the gradient come back in that layout: summed, if it is partial.
                local = parameter.redistribute(placements=[part.stored]).to_local(grad_placements=[part.gradient])
                module._parameters[name] = local / ranks if part.divided else local
        try:
            yield
        finally:
            module._parameters.update(whole)


class SplitVocabulary(Split):
    """An embedding of which each rank has its part of the vocabulary: zero for others' tokens, and summed over the ranks."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        embedding: Any = module
        rows = embedding.num_embeddings // device_mesh.size()
        first = rows * device_mesh.get_local_rank()
        padding = embedding.padding_idx
        embedding.padding_idx = padding - first if padding is not None and first <= padding < first + rows else None
        self._distribute(module, device_mesh)
        inner: Callable[..., Tensor] = module.forward

        def forward(ids: Tensor) -> Tensor:
            ids = ids - first
            others = (ids < 0) | (ids >= rows)
            with self._local(module, device_mesh.size()):
                vectors = inner(ids.masked_fill(others, 0)).masked_fill(others[..., None], 0.0)
            return self._moved(OUT_OF_ROWS, vectors, device_mesh)

        module.forward = forward
        return module


def _normalized(placement: Placement, dimensions: int) -> Placement:
    return Shard(placement.dim % dimensions) if isinstance(placement, Shard) else placement


def _with_first(
    change: Callable[[Tensor], Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with the first one changed, which a decoder layer gives to its attention by name."""
    if args:
        return (change(args[0]), *args[1:]), kwargs
    return args, kwargs | {"hidden_states": change(kwargs["hidden_states"])}
