"""How workers start."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
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


class AnyLauncher(BaseModel, ABC):
    """What `--launcher` may name. Fields are its options; one instance serves a whole run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]

    def unsupported(self, world_size: int) -> str | None:
        """Why this launcher cannot start so many ranks, or None."""
        return None


class Launcher(AnyLauncher):
    """Starts the warm worker of each world size, for the session that runs here."""

    @property
    def host(self) -> str:
        """The address at which the orchestrator listens for its workers."""
        return "127.0.0.1"

    def key(self) -> bytes | None:
        """The secret that workers must know to connect; None for a new random one with each worker."""
        return None

    @abstractmethod
    def start(self, world_size: int, environment: dict[str, str], log: IO[bytes]) -> WorkerProcess:
        """Start `python -m effbench.worker.host` once per rank, telling it where to connect; output goes to `log`.

        With more than one rank, RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE and MASTER_ADDR are set as torchrun sets them.
        """

    def close(self) -> None:
        """Called once, after the last worker is closed."""


@dataclass(frozen=True)
class Element:
    """One part of a run, for a cluster to place: one round of one world size, which is one session on one machine."""

    round: int
    world_size: int
    arguments: tuple[str, ...]
    """Of `effbench`: an ordinary run of this part, which measures what is missing and may be repeated."""


@dataclass(frozen=True)
class ElementState:
    """How an element fares, in the scheduler's own words."""

    job: str
    word: str
    reason: str = ""
    """Why it waits, where it does."""
    ended: bool = False
    died: bool = False
    """It ended before its run did."""


class Submission(Protocol):
    """Elements that a scheduler has taken."""

    def look(self) -> Sequence[ElementState]:
        """How each fares now, in the order of the elements."""
        ...

    def last_words(self, job: str) -> str:
        """The last line that an element wrote to its standard error."""
        ...

    def cancel(self) -> None:
        """End all that have not ended."""
        ...


class ArrayLauncher(AnyLauncher):
    """Hands a run to a cluster's scheduler, part by part; each part is a session of its own on the machine it is given."""

    @property
    def device(self) -> str:
        """What the machines that it asks for compute on: suites that leave it open are planned for that, wherever this runs."""
        return "cpu"

    @abstractmethod
    def submit(self, elements: Sequence[Element], title: str, folder: Path, cores: int) -> Submission:
        """Hand them over. InputError where the scheduler does not take them.

        `folder` is private, and every machine of the cluster sees it. All ranks of the largest cell together need `cores`.
        """
