"""How workers start on this machine."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import IO, ClassVar

from effbench.plugin import Launcher, WorkerProcess, hookimpl

_HOST = ("-m", "effbench.worker.host")
# torchrun's agent looks after its processes ten times a second by default; ours tell by themselves when they end.
_TORCHRUN = ("-m", "torch.distributed.run", "--monitor-interval", "1")


class Local(Launcher):
    """Processes on this machine: one by itself for a single rank, torchrun's for several."""

    name: ClassVar = "local"

    def start(self, world_size: int, environment: dict[str, str], log: IO[bytes]) -> WorkerProcess:
        """Start one process, or torchrun with one per rank."""
        if world_size == 1:
            return _start(_HOST, environment, log)
        ranks = ("--standalone", "--local-addr", self.host, "--nproc-per-node", str(world_size))
        # Ranks of one machine talk over its loopback device, whatever its host name resolves to.
        return _start((*_TORCHRUN, *ranks, *_HOST), environment | {"GLOO_SOCKET_IFNAME": "lo"}, log)


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


@hookimpl
def register_launchers(register: "Callable[[type[Launcher]], None]") -> None:
    """Register the launcher that every machine has."""
    register(Local)
