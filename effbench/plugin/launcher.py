"""How workers start."""

from abc import ABC, abstractmethod
from typing import IO, ClassVar, Protocol


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


class Launcher(ABC):
    """Starts the warm worker of one world size."""

    name: ClassVar[str]

    @abstractmethod
    def start(self, world_size: int, environment: dict[str, str], log: IO[bytes]) -> WorkerProcess:
        """Start `python -m effbench.worker.host`, whose environment says where to connect; what it prints goes to `log`."""
