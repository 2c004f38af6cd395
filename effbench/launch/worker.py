"""A warm worker as the orchestrator holds it: started when first needed, started again when it dies."""

import json
import os
import secrets
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Listener
from typing import Any

from effbench.plugin.launcher import Launcher, WorkerProcess

_CLOSING_S = 5.0
_STARTING_S = 300.0
_LOG_TAIL = 3000


class WorkerError(RuntimeError):
    """The worker itself, not a trial, could not start."""


@dataclass
class Answer:
    """How one trial ended, as the worker told it."""

    outcome: dict[str, Any] | None = None
    phase: str | None = None
    """The last phase that the trial announced."""
    ended: dict[str, Any] = field(default_factory=dict)
    log: str = ""
    timed_out: bool = False


class Worker:
    """One warm worker process and the connection to it."""

    def __init__(self, launcher: Launcher, world_size: int, start: dict[str, Any]) -> None:
        self._launcher, self._world_size, self._start_message = launcher, world_size, start
        self._connection: Connection | None = None
        self._process: WorkerProcess | None = None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the worker

    def run(self, request: dict[str, Any], timeout_s: float, on_phase: Callable[[str], None]) -> Answer:
        """Run one trial and wait for its end, blocking; over `timeout_s` it is killed. The worker stays warm."""
        connection = self.start()
        answer = Answer()
        deadline = time.monotonic() + timeout_s
        try:
            _send(connection, request)
            while not answer.ended:
                wait_s = _CLOSING_S if answer.timed_out else max(0.0, deadline - time.monotonic())
                if not connection.poll(wait_s):
                    if answer.timed_out:
                        raise EOFError  # it does not even answer a stop
                    answer.timed_out = True
                    _send(connection, {"stop": "timeout"})
                    continue
                message = json.loads(connection.recv_bytes())
                if "phase" in message:
                    answer.phase = message["phase"]
                    on_phase(message["phase"])
                elif "outcome" in message:
                    answer.outcome = message["outcome"]
                else:
                    answer.ended, answer.log = message["ended"], message["log"]
        except (EOFError, ConnectionError):
            self.close()
            answer.ended = {"reason": "the worker process itself ended", "exit": None, "signal": None}
        return answer

    def close(self) -> None:
        """End the worker: at end-of-file it kills its trial and exits; what does not is killed."""
        if self._connection:
            self._connection.close()
            self._connection = None
        if self._process:
            try:
                self._process.wait(_CLOSING_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def start(self) -> Connection:
        """Start the process unless it runs, and wait until it is warm."""
        if self._connection is None:
            key = secrets.token_bytes(32)
            with Listener(("127.0.0.1", 0), authkey=key) as listener:
                host, port = listener.address
                environment = {"EFFBENCH_ADDRESS": f"{host}:{port}", "EFFBENCH_KEY": key.hex()}
                self._process = self._launcher.start(self._world_size, environment, self._log)
                self._connection = self._accept(listener)
            _send(self._connection, self._start_message)
            self._expect_ready(self._connection)
        return self._connection

    def _accept(self, listener: Listener) -> Connection:
        # Listener has no timeout of its own; a worker that dies before it connects must not leave us waiting.
        socket = listener._listener._socket  # type: ignore[attr-defined]
        socket.settimeout(1.0)
        deadline = time.monotonic() + _STARTING_S
        while time.monotonic() < deadline and self._process and self._process.poll() is None:
            try:
                return listener.accept()
            except TimeoutError:
                continue
        raise self._failure("did not connect")

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


def _send(connection: Connection, message: dict[str, Any]) -> None:
    connection.send_bytes(json.dumps(message).encode())
