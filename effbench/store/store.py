"""The results folder: `<machine>/<suite>/<cell>.r<round>.json`, each with a sidecar of raw samples, written atomically.

Trials that were packed (`pack.py`) count as the files that they were packed from.
"""

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from effbench.plugin.errors import InputError
from effbench.store.machine import Machine
from effbench.store.packed import PackError, is_packed, packed_record, packed_sidecar, packed_trials
from effbench.store.record import Record
from effbench.store.scan import scan

KEPT_SAMPLES = 1000
"""A longer list of raw samples is thinned to every k-th one, evenly; summaries are made of all of them."""
_SIDECAR_LIMIT = 64 * 2**20  # a sidecar is ≤ 20 KB by far; what unpacks to more was not written by us
_PIECE = 64 * 2**10  # most sidecars are smaller; room for all that one may hold would take longer to get than to fill


@dataclass(frozen=True)
class ReadResult:
    """What lies below a folder: good records with their files, and one line for each file that is none."""

    records: list[tuple[Path, Record]]
    problems: list[str]


class Store:
    """The results of one suite on one machine. Only the orchestrator writes."""

    def __init__(self, root: Path, machine: Machine, suite: str) -> None:
        self.folder = root / machine.slug / suite
        self._machine_file = root / machine.slug / "machine.json"
        self._machine = machine

    def open(self, suite: BaseModel) -> None:
        """Make the folder, and write the machine's facts and the suite's settings into it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self._machine_file, _pretty(self._machine))
        write_atomic(self.folder / "suite.json", _pretty(suite))

    def write(self, record: Record, samples: dict[str, Any] | None, *, beside: bool = False) -> Record:
        """Write one trial: sidecar first, so that a record never names a file that is not there.

        `beside`: keep the record that another session made of the same cell and round, and write this one under its own name.
        So it is too where another session has made a good one meanwhile: each is a part of what its session compares.
        """
        stem = f"{record.cell_id}.r{record.round}"
        if beside or self._made_meanwhile(self.folder / f"{stem}.json", record):
            stem += f".{record.session}"
        if samples:
            record = record.model_copy(update={"samples": f"{stem}.samples.zst"})
            packed = zstandard.compress(json.dumps(_thinned(samples)).encode(), 19)
            write_atomic(self.folder / f"{stem}.samples.zst", packed)
        write_atomic(self.folder / f"{stem}.json", record.model_dump_json(exclude_none=True).encode() + b"\n")
        return record

    def _made_meanwhile(self, file: Path, record: Record) -> bool:
        packed = None if file.exists() else packed_record(file)
        others = [packed] if packed else [other for _, other in read_records(file).records] if file.exists() else []
        return any(
            other.session != record.session
            and other.status == "ok"
            and not other.dirty
            and other.fingerprint == record.fingerprint
            for other in others
        )

    def read(self) -> ReadResult:
        """Every record of this suite on this machine."""
        return read_records(self.folder)


def read_records(path: Path) -> ReadResult:
    """All records below a folder (or in one file), packed ones too. Truncated and foreign files are named, never counted."""
    refuse_missing(path)
    listing = scan(path)
    found: dict[Path, Record] = {}
    problems = list(listing.problems)
    for entry in listing.packs:
        try:
            for trial in packed_trials(file := place(path, entry.name)):
                try:
                    found[file.with_name(trial.name)] = Record.model_validate_json(trial.record)
                except ValidationError as error:
                    problems.append(not_a_record(file / trial.name, reason(error)))
        except PackError as error:
            problems.append(not_a_pack(file, error))
    for entry in listing.records:  # after the packs: what was measured again since then replaces what was packed
        try:
            found[file] = Record.model_validate_json((file := place(path, entry.name)).read_bytes())
        except ValidationError as error:
            problems.append(not_a_record(file, reason(error)))
        except OSError as error:
            problems.append(f"{file}: cannot be read, left out ({error.strerror})")
    return ReadResult(sorted(found.items(), key=lambda item: item[0]), problems)


def read_samples(path: Path) -> dict[str, Any]:
    """The raw samples and per-sample scores beside a record: a file's, or those of a packed trial (`samples` in the frame).

    OSError, ValueError, KeyError or zstandard.ZstdError where there are none, or they are not what effbench writes.
    """
    if is_packed(path):
        packed = packed_sidecar(path)
        if packed is None:
            raise FileNotFoundError(f"{path}: packed without samples")
        stream = zstandard.ZstdDecompressor().stream_reader(packed)
    else:
        stream = zstandard.ZstdDecompressor().stream_reader(path.open("rb"), closefd=True)
    text = bytearray()
    with stream:
        while len(text) < _SIDECAR_LIMIT and (piece := stream.read(_PIECE)):
            text += piece
    content: dict[str, Any] = from_json(bytes(text))
    return content


def refuse_missing(path: Path) -> None:
    """InputError where there is no such folder or file."""
    if not path.exists():
        raise InputError(f"{path}: no such results folder; `effbench run SUITE --results {path}` makes one")


def place(path: Path, name: str) -> Path:
    """Where a file lies that `scan(path)` found."""
    return path / name if path.is_dir() else path


def reason(error: ValidationError) -> str:
    """Why it is no record: the first of the reasons, in a line."""
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {first['msg']}" if where else first["msg"]


def not_a_record(file: Path, why: str) -> str:
    """The line that names it."""
    return f"{file}: not a trial record, left out ({why})"


def not_a_pack(file: Path, error: PackError) -> str:
    """The line that names it."""
    return f"{file}: not a pack of trials, left out ({error})"


def write_atomic(path: Path, content: bytes) -> None:
    """Temporary file, fsync, rename: a reader sees the old file or the new one. A full disk leaves the old one."""
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
    except OSError as error:
        raise InputError(f"{path.parent}: cannot write results ({error.strerror}); finished trials are intact") from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would hide results from whoever they are shared with
        os.replace(temporary, path)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True)
        raise InputError(f"{path}: cannot write results ({error.strerror}); finished trials are intact") from error


def _thinned(content: dict[str, Any]) -> dict[str, Any]:
    """Durations thinned to at most KEPT_SAMPLES each; per-sample scores are all kept, for they are paired by document."""

    def rounded(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: rounded(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [rounded(inner) for inner in value]
        return float(f"{value:.6g}") if isinstance(value, float) else value

    durations = {name: v[:: -(-len(v) // KEPT_SAMPLES) or 1] for name, v in content.get("samples", {}).items()}
    whole: dict[str, Any] = rounded(content | {"samples": durations})
    return whole


def _pretty(model: BaseModel) -> bytes:
    return model.model_dump_json(indent=2).encode() + b"\n"
