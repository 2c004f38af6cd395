"""Which files of a results folder hold trials, found without reading any."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

PACK_PREFIX, PACK_SUFFIX = "records-", ".parquet"
NOT_RECORDS = frozenset({"machine.json", "suite.json"})


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
    if path.is_dir():
        _look_into(path, "", found)
    else:
        status = path.stat()
        entry = Entry(path.name, status.st_mtime_ns, status.st_size)
        (found.packs if path.suffix == PACK_SUFFIX else found.records).append(entry)
    return found


def is_record_name(name: str) -> bool:
    """Whether a JSON file of this name counts as a record."""
    return name.endswith(".json") and not name.startswith(".") and name not in NOT_RECORDS


def is_pack_name(name: str) -> bool:
    """Whether a file of this name counts as a pack."""
    return name.startswith(PACK_PREFIX) and name.endswith(PACK_SUFFIX)


def _look_into(folder: Path | str, prefix: str, found: Listing) -> None:
    try:
        with os.scandir(folder) as entries:
            # Sidecars are half of all: gone before anything else is asked of them.
            rest = [entry for entry in entries if not entry.name.endswith(".zst")]
    except OSError as error:
        found.problems.append(f"{folder}: cannot be read, left out ({error.strerror})")
        return
    for entry in sorted(rest, key=lambda entry: entry.name):
        name = entry.name
        kind = found.records if is_record_name(name) else found.packs if is_pack_name(name) else None
        try:
            if entry.is_dir(follow_symlinks=False):
                _look_into(entry.path, f"{_encodable(prefix + name)}/", found)
            elif kind is not None:
                status = entry.stat()
                kind.append(Entry(_encodable(prefix + name), status.st_mtime_ns, status.st_size))
        except UnicodeError:
            found.problems.append(f"{entry.path!a}: left out, its name is not UTF-8")
        except OSError as error:
            found.problems.append(f"{entry.path}: cannot be read, left out ({error.strerror})")


def _encodable(name: str) -> str:
    """The name; UnicodeError where it is no text."""
    if not name.isascii():
        name.encode()
    return name
