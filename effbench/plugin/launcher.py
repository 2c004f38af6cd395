"""How workers start."""

from abc import ABC, abstractmethod
from typing import IO, ClassVar, Protocol

from pydantic import BaseModel, ConfigDict


class WorkerProcess(Protocol):
    """A started worker, as the orchestrator sees its process."""

    pid: int

    def poll(self) -> int | None:
        """The exit status, or None while it runs."""
        ...

    def wait(self, timeout: float | None = None) -> int:
        """Block until it ends."""
        ...

    def kill(self) -> None:
        """End it at once."""
        ...


class Launcher(BaseModel, ABC):
    """Starts the warm worker of each world size. Fields are its options; one instance serves a whole run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]

    @property
    def host(self) -> str:
        """The address at which the orchestrator listens for its workers."""
        return "127.0.0.1"

    def key(self) -> bytes | None:
        """The secret that workers must know to connect; None for a new random one with each worker."""
        return None

    def unsupported(self, world_size: int) -> str | None:
        """Why this launcher cannot start so many ranks, or None."""
        return None

    @abstractmethod
    def start(self, world_size: int, environment: dict[str, str], log: IO[bytes]) -> WorkerProcess:
        """Start `python -m effbench.worker.host` once per rank, telling it where to connect; output goes to `log`.

        With more than one rank, RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE and MASTER_ADDR are set as torchrun sets them.
        """

    def close(self) -> None:
        """Called once, after the last worker is closed."""
