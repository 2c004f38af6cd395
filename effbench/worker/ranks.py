"""The ranks of one trial: their process group and mesh, each one's share of a batch, and what they must agree on."""

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import TCPStore
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from effbench.plugin.mesh import mesh_shape
from effbench.plugin.technique import Batch, Technique

T = TypeVar("T")

_RENDEZVOUS_S = 60


@dataclass(frozen=True)
class Place:
    """Where a process stands under its launcher."""

    rank: int = 0
    local_rank: int = 0
    """Among the ranks of its own machine: its GPU's number."""
    world_size: int = 1


@dataclass(frozen=True)
class Rendezvous:
    """Where the ranks of one trial meet."""

    host: str
    port: int
    listening: int | None = None
    """File descriptor of the socket that is open there already; rank 0's alone. So no port is ever taken twice."""


class Ranks:
    """This process among the ranks of its trial; a single rank needs no process group, and every method costs nothing."""

    def __init__(self, place: Place = Place(), mesh: DeviceMesh | None = None) -> None:
        self.rank, self.world_size, self.mesh = place.rank, place.world_size, mesh

    def share(self, batch: Batch) -> Batch:
        """This rank's rows: batches are split along the mesh's `dp` dimension and repeated along the others."""
        return {name: self.rows(tensor) for name, tensor in batch.items()}

    def rows(self, tensor: Tensor) -> Tensor:
        """This rank's rows of one tensor."""
        return tensor.chunk(self._data_parallel)[self.data_rank] if self._data_parallel > 1 else tensor

    @property
    def data_rank(self) -> int:
        """Which share of a batch is this rank's."""
        return self.mesh.get_local_rank("dp") if self.mesh is not None and self._data_parallel > 1 else 0

    def meet(self) -> None:
        """Wait until every rank is here."""
        if self.world_size > 1:
            dist.barrier()

    def agree(self, seconds: float, loss: float | None = None) -> tuple[float, float]:
        """The slowest rank's seconds and the mean loss of the ranks that have one; call it outside of what is timed."""
        if self.world_size == 1:
            return seconds, 0.0 if loss is None else loss
        mine = torch.tensor([seconds, loss or 0.0, loss is not None], dtype=torch.float64)
        found = [torch.empty_like(mine) for _ in range(self.world_size)]
        dist.all_gather(found, mine)
        all_seconds, losses, have = torch.stack(found).T
        return float(all_seconds.max()), float(losses.sum() / have.sum().clamp(min=1))

    @property
    def _data_parallel(self) -> int:
        names = self.mesh.mesh_dim_names if self.mesh is not None else None
        return self.mesh.size(names.index("dp")) if self.mesh is not None and names and "dp" in names else 1


def join(place: Place, rendezvous: Rendezvous, device: torch.device, techniques: Sequence[Technique]) -> Ranks:
    """Start the process group of one trial and the device mesh that its techniques' dimensions span.

    The store is made explicitly: under torchrun, `init_method="tcp://…"` would take every rank for a client of the agent's.
    """
    master: dict[str, Any] = {} if rendezvous.listening is None else {"master_listen_fd": rendezvous.listening}
    store = TCPStore(
        rendezvous.host,
        rendezvous.port,
        place.world_size,
        is_master=place.rank == 0,
        timeout=timedelta(seconds=_RENDEZVOUS_S),
        wait_for_workers=False,
        **master,
    )
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.world_size)
    return Ranks(place, device_mesh(device.type, techniques, place.world_size))


def device_mesh(device: str, techniques: Sequence[Technique], world_size: int) -> DeviceMesh:
    """The mesh that the techniques' dimensions span, once there is a process group."""
    shape = mesh_shape(techniques, world_size)
    return init_device_mesh(device, tuple(shape.values()), mesh_dim_names=tuple(shape))


def union(mine: Mapping[str, T]) -> dict[str, T]:
    """By name, what any rank has, the first one's where several do. The same on every rank, all of which call it.

    Ranks differ where a pipeline gives each its own layers.
    """
    if not dist.is_initialized():
        return dict(mine)
    found: list[dict[str, T]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(found, dict(mine))
    return {name: value for of_rank in reversed(found) for name, value in of_rank.items()}


def listen(host: str) -> socket.socket:
    """Open a free port for the trial's store; rank 0's parent does it, so that the port is known before any rank starts."""
    return socket.create_server((host, 0), backlog=128)
