"""What runs on the first machine of an allocation: an ordinary `effbench run`, and what lets the other machines join it."""

import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from effbench.launch.nodes import SECRET

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

_EFFBENCH = (sys.executable, "-m", "effbench")
_MEASURED = (0, 1)  # statuses of a run that came to its end; what failed is in its records
_CLOSING_S = 10.0


@dataclass(frozen=True)
class OnNode:
    """The function that submitit calls. It is pickled by name, with nothing but the arguments of a command line."""

    arguments: tuple[str, ...]

    def __call__(self) -> None:
        """Run this part of the suite; the process ends with the run's status unless the run came to its end."""
        nodes = int(os.environ["SLURM_JOB_NUM_NODES"])
        if nodes == 1:
            status = _run(self.arguments, {})
        else:
            endpoint, secret = _endpoint(), {SECRET: secrets.token_hex(32)}  # told by environment: others see command lines
            with _others(nodes - 1, endpoint, secret):
                torchrun = ("--launcher", "torchrun", "--nnodes", str(nodes), "--rdzv-endpoint", endpoint)
                status = _run((*self.arguments, *torchrun), secret)
        if status not in _MEASURED:
            sys.exit(status if status > 0 else 128 - status)

    def checkpoint(self) -> "DelayedSubmission":
        """What submitit runs again, after the time was up or the node was wanted: the same, for a run does what is missing."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _run(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run effbench. Slurm's warning is for submitit: it would end a process that knows nothing of it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    process = subprocess.Popen((*_EFFBENCH, *arguments), env=os.environ | environment)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})
    try:
        return process.wait()
    finally:
        process.kill()  # nothing where it has ended; its workers end with it


def _endpoint() -> str:
    """An address of this machine at which the others reach it: that from which Slurm started this process."""
    host = os.environ["SLURM_LAUNCH_NODE_IPADDR"]
    with socket.create_server((host, 0)) as server:
        return f"{host}:{server.getsockname()[1]}"


@contextmanager
def _others(count: int, endpoint: str, environment: Mapping[str, str]) -> Iterator[None]:
    """`effbench join` on the allocation's other machines, until the run is over."""
    cores = f"--cpus-per-task={os.environ['SLURM_CPUS_PER_TASK']}"
    place = (f"--nodes={count}", f"--ntasks={count}", "--relative=1", "--overlap", cores, "--cpu-bind=none")
    process: subprocess.Popen[Any] = subprocess.Popen(
        ("srun", *place, "--kill-on-bad-exit=1", *_EFFBENCH, "join", endpoint), env=os.environ | environment
    )
    try:
        yield
        process.wait(_CLOSING_S)  # they see the run close its lobby
    except subprocess.TimeoutExpired:
        pass  # there was nothing to join for
    finally:
        process.terminate()
        process.wait()
