"""Older rounds packed: the trials of a folder in one Parquet file, from which the same files come back byte for byte."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from effbench.plugin.errors import InputError
from effbench.store.columns import DISTINCT, METRIC_COLUMNS, TRIAL_COLUMNS, Columns
from effbench.store.packed import (
    ROWS_PER_GROUP,
    PackedTrial,
    PackError,
    columns_agree,
    pack_schema,
    packed_trials,
    sidecar_name,
)
from effbench.store.record import Record
from effbench.store.scan import PACK_PREFIX, PACK_SUFFIX, scan
from effbench.store.store import not_a_pack, not_a_record, place, reason, refuse_missing, write_atomic

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq


@dataclass
class Done:
    """What was done to one pack."""

    file: Path
    trials: int
    loose_bytes: int
    """Of the files that were packed, or were unpacked."""
    packed_bytes: int
    problems: list[str] = field(default_factory=list)
    """Files, or packs, that were left as they are, and why."""


def pack(path: Path, before_round: int | None = None) -> Iterator[Done]:
    """Pack the trials of each folder below, those of earlier rounds than `before_round` or all, and remove their files.

    A pack is read back and compared with the files before the first of them is removed. What is no record stays, and so do
    sidecars that no record names. InputError where a pack cannot be written, or is not what was written.
    """
    refuse_missing(path)
    records = [place(path, entry.name) for entry in scan(path).records]
    for folder, files in groupby(records, key=lambda file: file.parent):
        done = _pack(folder, list(files), before_round)
        if done.trials or done.problems:
            yield done


def unpack(path: Path) -> Iterator[Done]:
    """Put the files of each pack below (or of one pack) back, and remove the pack.

    A file that is there already stays: it was measured after its trial was packed. A pack that cannot be read stays too.
    """
    refuse_missing(path)
    packs = [place(path, entry.name) for entry in scan(path).packs]
    # The newest first: of two with the same trial, it counts.
    for file in sorted(packs, key=lambda file: (file.parent, file.name), reverse=True):
        done = Done(file, 0, 0, file.stat().st_size)
        try:
            for trial in packed_trials(file):
                done.loose_bytes += _put_back(file.parent, trial)
                done.trials += 1
        except PackError as error:
            done.problems.append(not_a_pack(file, error))
        else:
            file.unlink()
        yield done


def _pack(folder: Path, files: Sequence[Path], before_round: int | None) -> Done:
    done = Done(folder, 0, 0, 0)
    content = BytesIO()
    names = []
    with _writer(content) as writer:
        for start in range(0, len(files), ROWS_PER_GROUP):
            group = _Group()
            for file in files[start : start + ROWS_PER_GROUP]:
                try:
                    group.add(file, before_round)
                except ValueError as error:
                    why = reason(error) if isinstance(error, ValidationError) else str(error)
                    done.problems.append(not_a_record(file, why))
                except OSError as error:
                    done.problems.append(f"{file}: cannot be read, left as it is ({error.strerror})")
            if group.trials:
                writer.write_table(group.table())
                names += [trial.name for trial in group.trials]
    if names:
        done.file, done.trials, done.packed_bytes = folder / _unique_name(content), len(names), content.tell()
        write_atomic(done.file, content.getvalue())
        _check(done.file, names)
        done.loose_bytes = _remove_files(done.file)
    return done


class _Group:
    """Trials that are written together."""

    def __init__(self) -> None:
        self.trials: list[PackedTrial] = []
        self._columns = Columns()

    def add(self, file: Path, before_round: int | None) -> None:
        """ValueError where it is no record, or one that cannot be packed."""
        content = file.read_bytes()
        record = Record.model_validate_json(content)
        if before_round is not None and record.round >= before_round:
            return
        if record.samples not in (None, sidecar_name(file.name)):
            raise ValueError(f"samples: expected {sidecar_name(file.name)}")
        sidecar = file.with_name(record.samples) if record.samples else None
        self._columns.add(file.name, record)
        kept = sidecar.read_bytes() if sidecar and sidecar.exists() else None
        self.trials.append(PackedTrial(file.name, content, record.samples, kept))

    def table(self) -> "pa.Table":
        import pyarrow as pa

        table = self._columns.table()
        for name in ("record", "sidecar"):
            values = pa.array([getattr(trial, name) for trial in self.trials], pa.binary())
            table = table.append_column(pack_schema().field(name), values)
        return table


def _writer(content: BytesIO) -> "pq.ParquetWriter":
    import pyarrow.parquet as pq

    return pq.ParquetWriter(
        content,
        pack_schema(),
        compression="zstd",
        compression_level=9,
        use_dictionary=[*(name for name in TRIAL_COLUMNS if name not in DISTINCT), *_METRIC_PATHS],
        write_page_checksum=True,
    )


_METRIC_PATHS = [f"metrics.list.element.{name}" for name in METRIC_COLUMNS]
"""Parquet's names of the columns within the list."""


def _unique_name(content: BytesIO) -> str:
    """Names sort by time, and two people's differ."""
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
    return f"{PACK_PREFIX}{now}-{hashlib.sha256(content.getbuffer()).hexdigest()[:8]}{PACK_SUFFIX}"


def _check(pack_file: Path, names: Sequence[str]) -> None:
    """That what was packed can be read, and is what lies in the folder still; otherwise the pack goes, and the files stay."""
    why = "it is not what was written, or a file changed meanwhile; do not pack while a run writes there"
    try:
        same = [trial == _loose(pack_file.with_name(trial.name), trial) for trial in packed_trials(pack_file)]
        if all(same) and len(same) == len(names) and columns_agree(pack_file):
            return
    except (PackError, OSError) as error:
        why = str(error)
    pack_file.unlink()
    raise InputError(f"{pack_file.parent}: nothing is packed, all files are intact: the pack was read back, and {why}")


def _loose(file: Path, trial: PackedTrial) -> PackedTrial:
    """The same trial as its files have it now."""
    sidecar = file.with_name(sidecar_name(file.name))
    kept = sidecar.read_bytes() if trial.samples and sidecar.exists() else None
    return PackedTrial(file.name, file.read_bytes(), trial.samples, kept)


def _remove_files(pack_file: Path) -> int:
    """A record goes before its sidecar: cut short in between, the trial is whole in the pack. Returns bytes."""
    removed = 0
    for trial in packed_trials(pack_file):
        for name, content in ((trial.name, trial.record), (trial.samples, trial.sidecar)):
            if name and content is not None:
                pack_file.with_name(name).unlink(missing_ok=True)
                removed += len(content)
    return removed


def _put_back(folder: Path, trial: PackedTrial) -> int:
    """The sidecar first, so that a record never names a file that is not there. Returns bytes."""
    record = folder / trial.name
    if record.exists() and record.read_bytes() != trial.record:
        return 0
    if trial.samples and trial.sidecar is not None:
        write_atomic(folder / trial.samples, trial.sidecar)
    if not record.exists():
        write_atomic(record, trial.record)
    return len(trial.record) + len(trial.sidecar or b"")
