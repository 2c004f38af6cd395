"""A warm worker as the orchestrator holds it: one process, or one per rank; started when needed, started again when it dies."""

import json
import os
import secrets
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, Listener, wait
from typing import Any

from effbench.launch.answer import Answer, RankAnswer, joined
from effbench.plugin.launcher import Launcher, WorkerProcess

_CLOSING_S = 5.0
_STARTING_S = 300.0
_GRACE_S = 0.5
"""After a rank failed: how long the others may take to tell what they saw, before they are ended."""
_LOG_TAIL = 3000


class WorkerError(RuntimeError):
    """The worker itself, not a trial, could not start."""


class Worker:
    """The warm processes of one world size, and a connection to each rank's."""

    def __init__(
        self, launcher: Launcher, world_size: int, start: Mapping[str, Any], across_ranks: Mapping[str, str] | None = None
    ) -> None:
        self._launcher, self._world_size, self._start_message = launcher, world_size, start
        self._across_ranks = across_ranks or {}
        self._connections: dict[int, Connection] = {}
        self._process: WorkerProcess | None = None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the worker

    @property
    def pid(self) -> int | None:
        """The launched process, under which all of this worker's others run; None while there is none."""
        return self._process.pid if self._process else None

    def run(self, request: Mapping[str, Any], timeout_s: float, on_phase: Callable[[str], None]) -> Answer:
        """Run one trial and wait for its end, blocking; over `timeout_s` it is killed. The worker stays warm."""
        self.start()
        trial = _Trial(self._connections, on_phase, time.monotonic() + timeout_s)
        try:
            trial.send(request)
            trial.wait()
        except (EOFError, ConnectionError):
            self.close()
            return Answer(ended={"reason": "the worker process itself ended", "exit": None, "signal": None}, phase=trial.phase)
        return joined(trial.ranks, self._across_ranks, timed_out=trial.timed_out)

    def close(self) -> None:
        """End the worker: at end-of-file each process kills its trial and exits; what does not is killed."""
        for connection in self._connections.values():
            connection.close()
        self._connections = {}
        if self._process:
            try:
                self._process.wait(_CLOSING_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def start(self) -> None:
        """Start the processes unless they run, and wait until they are warm."""
        if self._connections:
            return
        key = self._launcher.key() or secrets.token_bytes(32)
        with Listener((self._launcher.host, 0), backlog=self._world_size, authkey=key) as listener:
            host, port = listener.address
            environment = {"EFFBENCH_ADDRESS": f"{host}:{port}", "EFFBENCH_KEY": key.hex()}
            self._process = self._launcher.start(self._world_size, environment, self._log)
            self._accept(listener)
        for connection in self._connections.values():
            _send(connection, self._start_message)
        for connection in self._connections.values():
            self._expect_ready(connection)

    def _accept(self, listener: Listener) -> None:
        # Listener has no timeout of its own; a worker that dies before it connects must not leave us waiting.
        socket = listener._listener._socket  # type: ignore[attr-defined]
        socket.settimeout(1.0)
        deadline = time.monotonic() + _STARTING_S
        while len(self._connections) < self._world_size:
            if time.monotonic() > deadline or self._process is None or self._process.poll() is not None:
                raise self._failure("did not connect")
            try:
                connection = listener.accept()
            except (TimeoutError, AuthenticationError, EOFError, ConnectionError):  # or a stranger who does not know the key
                continue
            self._connections[json.loads(connection.recv_bytes())["rank"]] = connection

    def _expect_ready(self, connection: Connection) -> None:
        try:
            if connection.poll(_STARTING_S) and json.loads(connection.recv_bytes()).get("ready"):
                return
        except (EOFError, ConnectionError):
            pass  # told below, with the exit status
        raise self._failure("ended while it was starting")

    def _failure(self, what: str) -> WorkerError:
        self.close()
        self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - _LOG_TAIL))
        return WorkerError(f"the worker {what}; it said:\n{self._log.read().decode(errors='replace').strip()}")


class _Trial:
    """One trial while it runs on every rank: a rank that fails ends it on all of them."""

    def __init__(self, connections: Mapping[int, Connection], on_phase: Callable[[str], None], deadline: float) -> None:
        self._connections, self._on_phase, self._deadline = connections, on_phase, deadline
        self.ranks = {rank: RankAnswer() for rank in sorted(connections)}
        self.timed_out = False
        self._stopping = False

    @property
    def phase(self) -> str | None:
        """The last phase that rank 0 announced."""
        return self.ranks[0].phase

    def send(self, request: Mapping[str, Any]) -> None:
        """Start it on every rank; rank 0 says where the others meet it."""
        if len(self._connections) == 1:
            _send(self._connections[0], request)
            return
        _send(self._connections[0], {**request, "rendezvous": None})
        if not self._connections[0].poll(_CLOSING_S):
            raise EOFError  # it does not even open a port
        place = json.loads(self._connections[0].recv_bytes())["rendezvous"]
        for rank, connection in self._connections.items():
            if rank != 0:
                _send(connection, {**request, "rendezvous": place})

    def wait(self) -> None:
        """Block until every rank has ended."""
        by_connection = {connection: rank for rank, connection in self._connections.items()}
        while running := [c for c, rank in by_connection.items() if not self.ranks[rank].ended]:
            ready = wait(running, timeout=max(0.0, self._deadline - time.monotonic()))
            if not ready:
                self._stop(running)
            for connection in ready:
                assert isinstance(connection, Connection)  # noqa: S101 - of the types that `wait` knows, we gave it this one
                self._take(by_connection[connection], json.loads(connection.recv_bytes()))

    def _stop(self, running: list[Connection]) -> None:
        if self._stopping:
            raise EOFError  # it does not even answer a stop
        self._stopping = True
        self.timed_out = not any(answer.failed for answer in self.ranks.values())
        for connection in running:
            _send(connection, {"stop": "timeout" if self.timed_out else "another rank failed"})
        self._deadline = time.monotonic() + _CLOSING_S

    def _take(self, rank: int, message: dict[str, Any]) -> None:
        answer = self.ranks[rank]
        if "phase" in message:
            answer.phase = message["phase"]
            if rank == 0:
                self._on_phase(message["phase"])
        elif "outcome" in message:
            answer.outcome = message["outcome"]
        else:
            answer.ended, answer.log = message["ended"], message["log"]
        if answer.failed and not self._stopping:
            self._deadline = min(self._deadline, time.monotonic() + _GRACE_S)


def _send(connection: Connection, message: Mapping[str, Any]) -> None:
    connection.send_bytes(json.dumps(message).encode())
