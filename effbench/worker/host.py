"""The warm parent: imports once, forks a child per trial, and waits without spinning.

Run as `python -m effbench.worker.host`, once or by torchrun for every rank; EFFBENCH_ADDRESS and EFFBENCH_KEY say where the
orchestrator listens, torchrun's RANK, LOCAL_RANK and WORLD_SIZE which rank this is. It never runs a torch operation itself: a
parent with busy threads makes forked children hang.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: children of a two-thread parent hang on a futex
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # so that asking for CUDA does not initialise it

import ctypes
import faulthandler
import gc
import importlib
import json
import signal
import socket
import sys
import tempfile
import time
from multiprocessing.connection import Client, Connection, Pipe, wait
from pathlib import Path
from typing import IO, Any, Never

import torch

torch.set_num_threads(1)

import transformers

from effbench.plugin.catalog import Catalog
from effbench.plugin.cell import Cell
from effbench.plugin.discovery import discover
from effbench.plugin.meter import Meter
from effbench.plugin.model import ModelSource
from effbench.plugin.workload import Workload
from effbench.worker import trial
from effbench.worker.allocator import set_allocator
from effbench.worker.profiling import Profiler
from effbench.worker.ranks import Place, Ranks, Rendezvous, join, listen

_LOG_TAIL = 4000
_MEMORY_POLL_S = 0.1
_LAST_WORDS_S = 0.2
_PR_SET_PDEATHSIG = 1
_PLACE = (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1"))


def main() -> None:
    """Serve trials until the orchestrator closes the connection."""
    _die_with_parent()
    address = os.environ["EFFBENCH_ADDRESS"].rpartition(":")
    place = Place(*(int(os.environ.get(name, default)) for name, default in _PLACE))
    with Client((address[0], int(address[2])), authkey=bytes.fromhex(os.environ.pop("EFFBENCH_KEY"))) as connection:
        try:
            _send(connection, {"rank": place.rank})
            Host(connection, place, _receive(connection)).serve()
        except (EOFError, ConnectionError):
            return  # the orchestrator is gone; so are we


class Host:
    """One warm worker: the only one, or one rank of several."""

    def __init__(self, connection: Connection, place: Place, start: dict[str, Any]) -> None:
        self._connection, self._place = connection, place
        self._catalog: Catalog = discover([Path(f) for f in start["files"]], [Path(f) for f in start["folders"]])
        self._sources: dict[str, ModelSource] = {
            label: self._catalog.model(ref, trust_remote_code=start["trust_remote_code"])
            for label, ref in start["models"].items()
        }
        self._workloads: dict[str, Workload] = {label: self._catalog.workload(ref) for label, ref in start["workloads"].items()}
        for workload in self._workloads.values():
            workload.data_hash()  # reads the text once; children inherit it
        self._warm(start["imports"])
        _send(connection, {"ready": True})

    def serve(self) -> None:
        """One request, one child, one answer."""
        gc.freeze()  # what is imported is never garbage: collecting it would copy its pages in every child
        while True:
            request = _receive(self._connection)
            if "rendezvous" in request and self._place.rank == 0:
                with self._open_rendezvous() as store:
                    self._fork(request, store)
            else:
                self._fork(request)

    def _open_rendezvous(self) -> socket.socket:
        """Open the port of the trial's store and tell the orchestrator, who tells the other ranks."""
        one_machine = os.environ["LOCAL_WORLD_SIZE"] == os.environ["WORLD_SIZE"]
        host = "127.0.0.1" if one_machine else os.environ["MASTER_ADDR"]
        store = listen(host)
        _send(self._connection, {"rendezvous": [host, store.getsockname()[1]]})
        return store

    def _warm(self, imports: list[str]) -> None:
        models = {source.facts().model_type for source in self._sources.values()}
        modules = [f"transformers.models.{kind}.modeling_{kind}" for kind in models] + ["transformers.masking_utils", *imports]
        for module in modules:
            try:
                importlib.import_module(module)
            except ImportError as error:  # the trial that needs it fails with its own message; others go on
                sys.stderr.write(f"worker: cannot import {module} ahead of time: {error}\n")
        if torch.cuda.is_initialized():
            raise RuntimeError("a library initialised CUDA while it was imported; forked trials could not use the GPU")

    def _fork(self, request: dict[str, Any], store: socket.socket | None = None) -> None:
        receiver, sender = Pipe(duplex=False)
        compiled_code = tempfile.TemporaryDirectory(prefix="effbench-compiled-", ignore_cleanup_errors=True)
        with tempfile.TemporaryFile() as log, compiled_code as folder:
            child = os.fork()
            if child == 0:
                receiver.close()
                self._connection.close()
                os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder  # empty: what one trial compiled is not there in the next
                self._child(request, sender, log, store)
            sender.close()
            ended = self._watch(child, receiver, request.get("memory_bytes"))
            _send(self._connection, {"ended": ended, "log": _tail(log)})

    def _watch(self, child: int, receiver: Connection, memory_bytes: int | None) -> dict[str, Any]:
        """Forward the child's messages until it ends; end it on request, at end-of-file, or over its memory limit."""
        process = os.pidfd_open(child)
        oom_kills, reason = _kernel_oom_kills(), None
        open_ends: list[Any] = [receiver, self._connection, process]
        try:
            while True:
                ready = wait(open_ends, timeout=_MEMORY_POLL_S if memory_bytes else None)
                if receiver in ready:
                    try:
                        self._connection.send_bytes(receiver.recv_bytes())
                    except EOFError:
                        open_ends.remove(receiver)
                elif process in ready:  # only when nothing is left to forward
                    break
                if self._connection in ready and reason is None:
                    reason = _receive(self._connection)["stop"]
                    os.kill(child, signal.SIGUSR1)  # it writes where it stands into the log
                    wait([process], timeout=_LAST_WORDS_S)
                    os.kill(child, signal.SIGKILL)
                if memory_bytes and reason is None and (resident := _resident_bytes(child)) > memory_bytes:
                    reason = f"oom: resident size {resident / 2**30:.2f} GiB passed the limit of {memory_bytes / 2**30:.2f} GiB"
                    os.kill(child, signal.SIGKILL)
        except (EOFError, ConnectionError):
            os.kill(child, signal.SIGKILL)
            raise
        finally:
            os.close(process)
            _, status = os.waitpid(child, 0)
        if reason is None and os.WIFSIGNALED(status) and _kernel_oom_kills() > oom_kills:
            reason = "oom: the kernel killed the trial for lack of memory"
        code = os.waitstatus_to_exitcode(status)
        return {"reason": reason, "exit": code, "signal": signal.Signals(-code).name if code < 0 else None}

    def _child(self, request: dict[str, Any], sender: Connection, log: IO[bytes], store: socket.socket | None) -> Never:
        code = 1
        try:
            forked_at = time.monotonic()
            _die_with_parent()
            _prefer_for_oom_kill()
            for descriptor in (1, 2):  # what a plugin prints goes into the record of its failure, never into ours
                os.dup2(log.fileno(), descriptor)
            faulthandler.enable()
            faulthandler.register(signal.SIGUSR1)
            outcome = trial.run(
                self._trial_request(request, store),
                announce=lambda phase: _send(sender, {"phase": phase, "after_s": time.monotonic() - forked_at}),
            )
            sys.stdout.flush()
            _send(sender, {"outcome": outcome.__dict__})
            code = 0
        except BaseException:  # noqa: BLE001 - the child's last word: nothing may unwind into the parent's code above
            faulthandler.disable()
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stderr.flush()
            os._exit(code)

    def _trial_request(self, request: dict[str, Any], store: socket.socket | None) -> trial.TrialRequest:
        cell = Cell.model_validate(request["cell"])
        set_allocator(cell.allocator)  # before the trial allocates anything
        techniques = [self._catalog.technique(name, options) for name, options in cell.techniques]
        device = torch.device(cell.device, self._place.local_rank) if cell.device == "cuda" else torch.device(cell.device)
        ranks = Ranks()
        if cell.world_size > 1:
            rendezvous = Rendezvous(*request["rendezvous"]) if store is None else Rendezvous(*_address(store), store.detach())
            ranks = join(self._place, rendezvous, device, techniques)
        names = request["meters"] or self._catalog.meters.names()
        meters: list[Meter] = [self._catalog.meters.get(name)() for name in names]
        if folder := request.get("profile"):
            meters = [Profiler(Path(folder))]
        return trial.TrialRequest(
            cell=cell,
            seed=request["seed"],
            techniques=techniques,
            source=self._sources[cell.model],
            workload=self._workloads[cell.workload],
            meters=meters,
            probe=request["probe"],
            split=request["split"],
            phase_skips=request["phase_skips"],
            ranks=ranks,
            device=device,
        )


def _address(store: socket.socket) -> tuple[str, int]:
    host, port = store.getsockname()[:2]
    return host, port


def _send(connection: Connection, message: dict[str, Any]) -> None:
    connection.send_bytes(json.dumps(message).encode())


def _receive(connection: Connection) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(connection.recv_bytes())
    return message


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _prefer_for_oom_kill() -> None:
    score = Path("/proc/self/oom_score_adj")
    if score.exists():
        score.write_text("800")


def _tail(log: IO[bytes]) -> str:
    """The end of what a trial printed, without the list of C extensions that Python adds when it dies."""
    log.seek(max(0, log.seek(0, os.SEEK_END) - _LOG_TAIL))
    lines = log.read().decode(errors="replace").splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("Extension modules: "))


def _resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):  # it ended between two looks
        return 0


def _kernel_oom_kills() -> int:
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()  # it would stand in the record of every trial that fails
    main()
