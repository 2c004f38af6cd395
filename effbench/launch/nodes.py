"""Several machines: the one that orchestrates opens a lobby, the others join it and start what it tells them."""

import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener

import psutil

from effbench.plugin.errors import InputError

SECRET = "EFFBENCH_SECRET"  # noqa: S105 - the variable's name
_INTERFACE = "GLOO_SOCKET_IFNAME"
_JOINING_S = 600.0
_CLOSING_S = 5.0


@dataclass(frozen=True)
class Endpoint:
    """An address and a TCP port."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> "Endpoint":
        """`HOST:PORT`; InputError for anything else."""
        host, colon, port = text.rpartition(":")
        if not colon or not host or not port.isdigit() or not 0 < int(port) < 2**16:
            raise InputError(f"endpoint {text!r}: expected HOST:PORT, for instance 10.0.0.1:29400")
        return cls(host, int(port))

    def interface(self) -> dict[str, str]:
        """The setting by which this machine's ranks talk over the network interface that leads here, unless it is set.

        Otherwise Gloo takes the one that the machine's own name resolves to, which on many systems is the loopback.
        """
        if _INTERFACE in os.environ:
            return {}
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((self.host, self.port))  # of a datagram socket: asks for the route, and sends nothing
            own = probe.getsockname()[0]
        names = [name for name, found in psutil.net_if_addrs().items() if any(address.address == own for address in found)]
        return {_INTERFACE: names[0]} if names else {}


def secret_key() -> bytes:
    """The key that every machine makes of the shared secret; InputError where there is none."""
    secret = os.environ.get(SECRET, "")
    if not secret:
        raise InputError(f"several machines need a shared secret: set {SECRET} to the same long random text on each of them")
    return hashlib.sha256(secret.encode()).digest()


class Lobby:
    """Where the other machines wait; open until the run ends."""

    def __init__(self, endpoint: Endpoint, machines: int) -> None:
        self._listener = Listener((endpoint.host, endpoint.port), backlog=machines, authkey=secret_key())
        sys.stderr.write(f"effbench: waiting for {machines} more: effbench join {endpoint.host}:{endpoint.port}\n")
        self._machines = self._wait_for(machines)

    def start(self, arguments: Sequence[Sequence[str]], environment: Mapping[str, str]) -> None:
        """Have each machine start python with its arguments, in the order in which they joined."""
        for connection, own in zip(self._machines, arguments, strict=True):
            connection.send_bytes(json.dumps({"arguments": list(own), "environment": dict(environment)}).encode())

    def close(self) -> None:
        """Let the machines go: at end-of-file they end what they started."""
        for connection in self._machines:
            connection.close()
        self._listener.close()

    def _wait_for(self, machines: int) -> list[Connection]:
        self._listener._listener._socket.settimeout(1.0)  # type: ignore[attr-defined]  # Listener has no timeout of its own
        joined: list[Connection] = []
        deadline = time.monotonic() + _JOINING_S
        while len(joined) < machines:
            if time.monotonic() > deadline:
                raise InputError(f"only {len(joined)} of {machines} other machines joined within {_JOINING_S:g} s")
            try:
                joined.append(self._listener.accept())
            except (TimeoutError, AuthenticationError, EOFError, ConnectionError):  # or a stranger without the secret
                continue
        return joined


def join(endpoint: Endpoint) -> None:
    """Wait in the lobby, start what it says, and end all of it when the lobby closes. InputError where there is no lobby."""
    key, started = secret_key(), list[subprocess.Popen[bytes]]()
    with _enter(endpoint, key) as lobby:
        try:
            while True:
                order = json.loads(lobby.recv_bytes())
                environment = os.environ | endpoint.interface() | order["environment"] | {"EFFBENCH_KEY": key.hex()}
                started.append(subprocess.Popen([sys.executable, *order["arguments"]], env=environment, start_new_session=True))
        except (EOFError, ConnectionError):
            return  # the run is over
        finally:
            for process in started:
                _end(process)


def _enter(endpoint: Endpoint, key: bytes) -> Connection:
    deadline = time.monotonic() + _JOINING_S
    while True:
        try:
            return Client((endpoint.host, endpoint.port), authkey=key)
        except AuthenticationError as error:
            raise InputError(f"{endpoint.host}:{endpoint.port} does not accept this {SECRET}") from error
        except OSError as error:
            if time.monotonic() > deadline:
                raise InputError(f"no run waits at {endpoint.host}:{endpoint.port} ({error.strerror})") from error
            time.sleep(0.5)  # there is nothing to block on: the run may be started later than this


def _end(process: "subprocess.Popen[bytes]") -> None:
    try:
        process.wait(_CLOSING_S)  # its ranks see the end of their own connections
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
