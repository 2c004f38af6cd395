"""Which files of a results folder hold trials, found without reading any."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

PACK_PREFIX, PACK_SUFFIX = "records-", ".parquet"
_NOT_RECORDS = frozenset({"machine.json", "suite.json"})


class Entry(NamedTuple):
    """A file, and what tells that it has not changed."""

    name: str
    """Relative to the folder, `/` between the parts."""
    modified_ns: int
    size: int


@dataclass(frozen=True)
class Listing:
    """What lies below a folder, in order of the paths."""

    records: list[Entry] = field(default_factory=list)
    """JSON files; whether they are records is not known yet."""
    packs: list[Entry] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def scan(path: Path) -> Listing:
    """All below a folder, or the one file that `path` is. Links to folders are not followed."""
    found = Listing()
    entries = _below(path, "", found.problems) if path.is_dir() else _alone(path)
    for entry in entries:
        (found.packs if entry.name.endswith(PACK_SUFFIX) else found.records).append(entry)
    return found


def is_record_name(name: str) -> bool:
    """Whether a JSON file of this name counts as a record."""
    return name.endswith(".json") and not name.startswith(".") and name not in _NOT_RECORDS


def is_pack_name(name: str) -> bool:
    """Whether a file of this name counts as a pack."""
    return name.startswith(PACK_PREFIX) and name.endswith(PACK_SUFFIX)


def _alone(path: Path) -> Iterator[Entry]:
    found = path.stat()
    yield Entry(path.name, found.st_mtime_ns, found.st_size)


def _below(folder: Path | str, prefix: str, problems: list[str]) -> Iterator[Entry]:
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        problems.append(f"{folder}: cannot be read, left out ({error.strerror})")
        return
    for entry in found:
        if entry.is_dir(follow_symlinks=False):
            yield from _below(entry.path, f"{prefix}{entry.name}/", problems)
        elif is_record_name(entry.name) or is_pack_name(entry.name):
            try:
                entry.name.encode()
                status = entry.stat()
            except UnicodeError:
                problems.append(f"{entry.path!a}: left out, its name is not UTF-8")
            except OSError as error:
                problems.append(f"{entry.path}: cannot be read, left out ({error.strerror})")
            else:
                yield Entry(prefix + entry.name, status.st_mtime_ns, status.st_size)
