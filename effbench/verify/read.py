"""A folder of records, each file read once; what cannot be read is a finding."""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, TypeVar

import zstandard
from pydantic import BaseModel, Field, ValidationError

from effbench.plan.suite import Suite
from effbench.plugin.errors import InputError
from effbench.store.machine import Machine
from effbench.store.packed import PackError, columns_agree, packed_trials
from effbench.store.record import Record
from effbench.store.scan import NOT_RECORDS, is_pack_name
from effbench.store.store import read_samples, reason
from effbench.verify.finding import Finding

M = TypeVar("M", bound=BaseModel)

_RECORD_LIMIT = 2**20  # a record is ≤ 10 KB; what is a hundred times larger was not written by us
_LARGEST = 10**9
MOST_ROUNDS = 10_000
"""Many times what anybody measures; lists of rounds are made up to it."""
_SIDECAR, _PACK = ".samples.zst", ".parquet"
_HOME = re.compile(rb"(/home/|/Users/|/root/|[A-Z]:\\\\+Users)")
"""Below these lie the folders of users, by their names."""


Figure = Annotated[float, Field(ge=-1e12, le=1e12, allow_inf_nan=False)]
"""Of seconds, losses and scores there are no larger ones, and sums of these do not overflow."""


class PerSample(BaseModel):
    """Scores of every document."""

    names: list[str]
    weights: list[Figure]
    per_sample: dict[str, list[Figure]]
    chance: dict[str, list[Figure]] = {}


class Sidecar(BaseModel):
    """What lies beside a record."""

    samples: dict[str, list[Figure]] = {}
    """Seconds by what was timed, and the curve of the loss."""
    quality: PerSample | None = None


@dataclass(frozen=True)
class Trial:
    """One record with its raw samples."""

    file: Path
    """Of a packed one `PACK/NAME`, the name being that of the file it was."""
    name: str
    """The file, as findings call it."""
    record: Record
    sidecar: Sidecar | None

    def finding(self, code: str, what: str, detail: str = "") -> Finding:
        """Something wrong with this record."""
        return Finding(code, what, self.name, detail)


@dataclass
class SuiteFolder:
    """The trials of one folder `<machine>/<suite>`, with the files that say what both are."""

    path: Path
    name: str
    machine: Machine | None = None
    suite: Suite | None = None
    trials: list[Trial] = field(default_factory=list)

    def finding(self, code: str, what: str, detail: str = "") -> Finding:
        """Something wrong with the folder as a whole."""
        return Finding(code, what, self.name, detail)


def read_folders(path: Path, findings: list[Finding]) -> list[SuiteFolder]:
    """Every folder of records below a path, or of the one record that it is; what cannot be read goes into `findings`."""
    if not path.exists():
        raise InputError(f"{path}: no such folder; `effbench run SUITE --results {path}` makes one")
    if not _readable(path):
        raise InputError(f"{path}: no trial records there")
    path = path.resolve()
    top = path if path.is_dir() else path.parent
    by_folder: dict[Path, list[Path]] = defaultdict(list)
    for file in [path] if path.is_file() else sorted(_files(path)):
        by_folder[file.parent].append(file)
    folders = []
    for folder, files in by_folder.items():
        found = SuiteFolder(folder, _relative(folder, top) or folder.name)
        found.machine = _described(folder.parent / "machine.json", Machine, "machine", found, findings)
        found.suite = _described(folder / "suite.json", Suite, "suite", found, findings)
        for file in (file for file in files if file.suffix == ".json"):
            if trial := _read_trial(file, _relative(file, top), findings):
                found.trials.append(trial)
        for file in (file for file in files if is_pack_name(file.name)):
            found.trials += _read_pack(file, _relative(file, top), findings)
        if path.is_dir():
            findings += _strays(found, files, top)
        folders.append(found)
    return folders


def _readable(path: Path) -> bool:
    """Whether there is anything to check; nothing is no submission without errors."""
    return any(_files(path)) if path.is_dir() else path.suffix == ".json" or is_pack_name(path.name)


def _files(folder: Path) -> Iterator[Path]:
    for file in folder.rglob("*"):
        if file.name.endswith((".json", _SIDECAR, _PACK)) and file.name not in NOT_RECORDS and not file.name.startswith("."):
            yield file


def _relative(path: Path, top: Path) -> str:
    return "" if path == top else path.relative_to(top).as_posix()


def _described(file: Path, model: type[M], code: str, folder: SuiteFolder, findings: list[Finding]) -> M | None:
    """The machine or the suite that a file describes."""
    try:
        content = _content(file)
        return model.model_validate_json(content)
    except (OSError, ValueError) as error:
        findings.append(folder.finding(code, f"{file.name} is missing or not what effbench writes", _reason(error)))
        return None


def _read_trial(file: Path, name: str, findings: list[Finding]) -> Trial | None:
    try:
        content = _content(file)
    except (OSError, ValueError) as error:
        findings.append(Finding("unreadable", "a file cannot be read", name, _reason(error)))
        return None
    return _parsed(content, file, name, findings)


def _parsed(content: bytes, file: Path, name: str, findings: list[Finding]) -> Trial | None:
    try:
        record = Record.model_validate_json(content)
        _check_sizes(record)
    except ValueError as error:
        broken = isinstance(error, ValidationError) and error.errors()[0]["type"] == "json_invalid"
        code, what = ("unreadable", "not JSON, or cut off") if broken else ("schema", "not a trial record")
        findings.append(Finding(code, what, name, _reason(error)))
        return None
    if _HOME.search(content):
        findings.append(Finding("private", "a path names a user's folder; records name nobody", name))
    return Trial(file, name, record, _read_sidecar(file, name, record, findings))


def _read_pack(file: Path, name: str, findings: list[Finding]) -> list[Trial]:
    """Its trials, each from the very bytes it was packed from; boards read the columns beside them, which must say the same."""
    found: list[Trial | None] = []
    try:
        if file.is_symlink():
            raise PackError("a link, not a file")
        for packed in packed_trials(file):
            found.append(_parsed(packed.record, file / packed.name, f"{name}/{packed.name}", findings))
        if not columns_agree(file):
            findings.append(Finding("packed", "a pack's columns are not those of its records: pack these anew", name))
    except (PackError, ValidationError) as error:
        findings.append(Finding("packed", "a pack cannot be read", name, _reason(error)))
    return [trial for trial in found if trial]


def _check_sizes(record: Record) -> None:
    """ValueError for numbers that are none of a trial's, with which nothing could be computed."""
    cell = record.cell
    sizes = (cell.seq_len, cell.batch_size, cell.world_size, cell.data_ranks, cell.threads, cell.steps, cell.new_tokens)
    if min(sizes) < 1 or max(sizes) > _LARGEST:
        raise ValueError(f"cell: sizes, ranks, threads, steps and tokens are whole numbers from 1 to {_LARGEST}")
    if not 1 <= record.round <= MOST_ROUNDS:
        raise ValueError(f"round: a whole number from 1 to {MOST_ROUNDS}")
    counts = [count for summary in record.metrics.values() for count in (summary.n, summary.warmup or 0)]
    if counts and (min(counts) < 0 or max(counts) > _LARGEST):
        raise ValueError(f"metrics: samples are counted from 0 to {_LARGEST}")


def _read_sidecar(file: Path, name: str, record: Record, findings: list[Finding]) -> Sidecar | None:
    """The raw samples beside a record: under its own name and nowhere else, whatever the record says."""
    expected = f"{file.stem}{_SIDECAR}"
    if record.samples is None:
        if record.status == "ok":
            findings.append(Finding("sidecar", "no raw samples beside a record", name, f"expected {expected}"))
        return None
    if record.samples != expected:
        findings.append(
            Finding("sidecar", "the raw samples are another record's", name, f"{record.samples}, expected {expected}")
        )
        return None
    packed = is_pack_name(file.parent.name)
    beside = file if packed else file.with_name(expected)
    try:
        if beside.is_symlink():
            raise ValueError("a link, not a file")
        return Sidecar.model_validate(read_samples(beside))
    except (OSError, ValueError, KeyError, RecursionError, zstandard.ZstdError) as error:
        findings.append(Finding("sidecar", "the raw samples cannot be read", name, _reason(error)))
        return None


def _strays(folder: SuiteFolder, files: list[Path], top: Path) -> Iterator[Finding]:
    named = {trial.record.samples for trial in folder.trials}
    for file in files:
        if file.name.endswith(_SIDECAR) and file.name not in named:
            yield Finding("stray", "raw samples of no record", _relative(file, top))
        if file.name.endswith(_PACK) and not is_pack_name(file.name):
            yield Finding("stray", "a Parquet file that is no pack of records", _relative(file, top))


def _content(file: Path) -> bytes:
    """A record may come from anyone: no link is followed, and nothing of any size is read."""
    if file.is_symlink():
        raise ValueError("a link, not a file")
    if file.stat().st_size > _RECORD_LIMIT:
        raise ValueError(f"larger than {_RECORD_LIMIT} bytes")
    return file.read_bytes()


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return reason(error)
    return error.strerror or "cannot be opened" if isinstance(error, OSError) else str(error) or type(error).__name__
