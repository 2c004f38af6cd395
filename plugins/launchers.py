"""How workers start on this machine."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import IO, ClassVar

from effbench.plugin import Launcher, WorkerProcess, hookimpl


class Local(Launcher):
    """One worker process on this machine, in a process group of its own so that Ctrl-C reaches the orchestrator alone."""

    name: ClassVar = "local"

    def start(self, world_size: int, environment: dict[str, str], log: IO[bytes]) -> WorkerProcess:
        """Start one worker; ValueError for more than one rank."""
        if world_size != 1:
            raise ValueError(f"the local launcher starts one rank, not {world_size}")
        command = [sys.executable, "-m", "effbench.worker.host"]
        return subprocess.Popen(
            command,
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
