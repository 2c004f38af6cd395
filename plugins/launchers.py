"""How workers start."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import IO, ClassVar

from pydantic import Field, PrivateAttr, model_validator

from effbench.launch.nodes import Endpoint, Lobby, secret_key
from effbench.plugin import Launcher, WorkerProcess, hookimpl

_HOST = ("-m", "effbench.worker.host")
# torchrun's agent looks after its processes ten times a second by default; ours tell by themselves when they end.
_TORCHRUN = ("-m", "torch.distributed.run", "--monitor-interval", "1")
_LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo"}  # ranks of one machine talk over it, whatever its host name resolves to


class Local(Launcher):
    """Processes on this machine: one by itself for a single rank, torchrun's for several."""

    name: ClassVar = "local"

    def start(self, world_size: int, environment: dict[str, str], log: IO[bytes]) -> WorkerProcess:
        """Start one process, or torchrun with one per rank."""
        if world_size == 1:
            return _start(_HOST, environment, log)
        ranks = ("--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", str(world_size))
        return _start((*_TORCHRUN, *ranks, *_HOST), environment | _LOOPBACK, log)


class Torchrun(Local):
    """torchrun over several machines: this one, and those that `effbench join` it."""

    name: ClassVar = "torchrun"

    nnodes: int = Field(default=1, ge=1, description="machines, this one included")
    rdzv_endpoint: str | None = Field(default=None, description="HOST:PORT at which this machine waits for the others")
    _lobby: Lobby | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _reachable(self) -> "Torchrun":
        if self.nnodes > 1:
            if self.rdzv_endpoint is None:
                raise ValueError(f"nnodes = {self.nnodes} needs rdzv_endpoint = HOST:PORT, an address of this machine")
            Endpoint.parse(self.rdzv_endpoint)
        return self

    @property
    def host(self) -> str:
        """The endpoint's address where there are other machines."""
        return Endpoint.parse(self.rdzv_endpoint).host if self.nnodes > 1 and self.rdzv_endpoint else super().host

    def key(self) -> bytes | None:
        """What all machines share: a random key could not reach the others unseen."""
        return secret_key() if self.nnodes > 1 else None

    def unsupported(self, world_size: int) -> str | None:
        """Ranks are spread evenly; a single one runs here."""
        spread = world_size == 1 or world_size % self.nnodes == 0
        return None if spread else f"world_size {world_size} cannot be spread evenly over {self.nnodes} machines"

    def start(self, world_size: int, environment: dict[str, str], log: IO[bytes]) -> WorkerProcess:
        """Start torchrun's agent here and on every other machine."""
        if world_size == 1 or self.nnodes == 1 or self.rdzv_endpoint is None:
            return super().start(world_size, environment, log)
        endpoint = Endpoint.parse(self.rdzv_endpoint)
        lobby = self._lobby = self._lobby or Lobby(endpoint, self.nnodes - 1)
        port = _free_port(endpoint.host)
        agents = [
            (*_TORCHRUN, "--nnodes", str(self.nnodes), "--node-rank", str(node), "--nproc-per-node",
             str(world_size // self.nnodes), "--master-addr", endpoint.host, "--master-port", str(port), *_HOST)
            for node in range(self.nnodes)
        ]  # fmt: skip
        told = {
            name: value for name, value in environment.items() if name != "EFFBENCH_KEY"
        }  # each makes its own of the secret
        lobby.start(agents[1:], told)
        return _start(agents[0], environment | endpoint.interface(), log)

    def close(self) -> None:
        """Let the other machines go."""
        if self._lobby:
            self._lobby.close()


def _start(arguments: Sequence[str], environment: Mapping[str, str], log: IO[bytes]) -> WorkerProcess:
    """Start python in a process group of its own, so that Ctrl-C reaches the orchestrator alone."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def _free_port(host: str) -> int:
    """A port that is free now; torchrun says so in the log if another program takes it in the moment between."""
    with socket.create_server((host, 0)) as server:
        return int(server.getsockname()[1])


@hookimpl
def register_launchers(register: "Callable[[type[Launcher]], None]") -> None:
    """Register how workers start here and elsewhere."""
    register(Local)
    register(Torchrun)
