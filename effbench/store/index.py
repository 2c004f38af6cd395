"""All trials below a folder as columns, and the index that spares reading every JSON file again.

The index is a Parquet file in the user's cache folder. A file is read again when its size or time has changed; an index that is
missing, damaged or of another layout is made anew.
"""

import hashlib
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, cast

from pydantic import TypeAdapter, ValidationError

from effbench.plugin.errors import InputError
from effbench.store.cache import folder
from effbench.store.columns import LAYOUT, Columns, schema
from effbench.store.packed import PackError, checked, opened, read_groups, read_pack
from effbench.store.record import Record
from effbench.store.scan import Entry, scan
from effbench.store.store import not_a_pack, not_a_record, place, reason, refuse_missing, write_atomic

if TYPE_CHECKING:
    import pyarrow as pa

MIN_FILES = 1000
"""Fewer files are read in a fraction of a second: an index would save little, and lie in the cache folder for good."""
_SETTLED_NS = 2_000_000_000
"""A file that was written less than this before it was read may be written again within the same tick of the file system's
clock, which no comparison of times would show; so it is not kept in the index yet."""


@dataclass(frozen=True)
class Trials:
    """What lies below a folder: a row per trial, and one line for each file that is none."""

    table: "pa.Table"
    """Columns as `columns.schema`; `file` and `samples` are relative to the folder."""
    problems: list[str]


@dataclass
class _Loose:
    """What is known of JSON files: rows, and those that are no records."""

    table: "pa.Table"
    entries: list[Entry]
    """Of the rows."""
    bad: dict[str, tuple[int, int, str]] = field(default_factory=dict)
    """Time, size and reason by name."""
    unreadable: list[str] = field(default_factory=list)


def read_trials(path: Path, *, use_index: bool = True) -> Trials:
    """All trials below a folder (or in one file), in order of their files. A file counts more than the same one packed."""
    import pyarrow as pa

    refuse_missing(path)
    listing = scan(path)
    problems = list(listing.problems)
    packed = _packed(path, listing.packs, problems)
    loose = _loose(path, listing.records, use_index and len(listing.records) >= MIN_FILES)
    problems += [not_a_record(place(path, name), why) for name, (*_, why) in sorted(loose.bad.items())] + loose.unreadable
    tables = [table for table in (packed, loose.table) if len(table)]
    return Trials(_ordered(pa.concat_tables(tables) if tables else schema().empty_table()), problems)


def _packed(path: Path, entries: list[Entry], problems: list[str]) -> "pa.Table":
    """The rows of all packs; a line for each that is none.

    Checked all at once, for many packs are small; and one by one only where that finds something.
    """
    import pyarrow as pa

    tables: dict[Path, pa.Table] = {}
    with ThreadPoolExecutor() as pool:  # Arrow reads outside of Python's lock
        for file, found in pool.map(partial(_attempt, path), entries):
            if isinstance(found, PackError):
                problems.append(not_a_pack(file, found))
            else:
                tables[file] = found
    if not tables:
        return schema().empty_table()
    try:
        return checked(pa.concat_tables(tables.values()))
    except PackError:
        good = []
        for file, table in tables.items():
            try:
                good.append(checked(table))
            except PackError as error:
                problems.append(not_a_pack(file, error))
        return pa.concat_tables(good) if good else schema().empty_table()


def _attempt(path: Path, entry: Entry) -> "tuple[Path, pa.Table | PackError]":
    file = place(path, entry.name)
    try:
        return file, _below(read_pack(file), entry.name.rpartition("/")[0])
    except PackError as error:
        return file, error


def _below(table: "pa.Table", parent: str) -> "pa.Table":
    """With names relative to the folder that was asked for."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not parent:
        return table
    for name in ("file", "samples"):
        joined = pc.binary_join_element_wise(pa.scalar(parent), table[name], "/")
        table = table.set_column(table.schema.get_field_index(name), schema().field(name), joined)
    return table


def _ordered(table: "pa.Table") -> "pa.Table":
    """By path, the last row of each: a newer pack replaces an older one, and a file replaces both."""
    last = {name: number for number, name in enumerate(table["file"].to_pylist())}
    # Part by part, as paths are ordered: nothing comes before the end of a part.
    order = [last[name] for name in sorted(last, key=lambda name: name.replace("/", "\0"))]
    return (table if order == list(range(len(table))) else table.take(order)).unify_dictionaries()


def _loose(path: Path, entries: list[Entry], use_index: bool) -> _Loose:
    import pyarrow as pa

    now = time.time_ns()
    index = _index_file(path)
    known = (use_index and _read_index(index)) or _Loose(schema().empty_table(), [])
    there = set(entries)
    kept = [number for number, entry in enumerate(known.entries) if entry in there]
    bad = {name: about for name, about in known.bad.items() if Entry(name, *about[:2]) in there}
    read = {known.entries[number] for number in kept} | {Entry(name, *about[:2]) for name, about in bad.items()}
    new = _read_files(path, [entry for entry in entries if entry not in read])
    if len(kept) < len(known.entries):
        known.table = known.table.take(kept)
    if new.entries:
        known.table = pa.concat_tables([known.table, new.table]).unify_dictionaries()
    found = _Loose(known.table, [known.entries[number] for number in kept] + new.entries, bad | new.bad, new.unreadable)
    if use_index and (found.entries, found.bad) != (known.entries, known.bad):
        _write_index(index, _settled(found, now - _SETTLED_NS))
    return found


def _read_files(path: Path, entries: list[Entry]) -> _Loose:
    columns, good = Columns(), []
    bad: dict[str, tuple[int, int, str]] = {}
    unreadable = []
    for entry in entries:
        file = place(path, entry.name)
        try:
            columns.add(entry.name, Record.model_validate_json(file.read_bytes()))
            good.append(entry)
        except ValidationError as error:
            bad[entry.name] = (entry.modified_ns, entry.size, reason(error))
        except ValueError as error:
            bad[entry.name] = (entry.modified_ns, entry.size, str(error))
        except OSError as error:
            unreadable.append(f"{file}: cannot be read, left out ({error.strerror})")
    return _Loose(columns.table(), good, bad, unreadable)


def _settled(found: _Loose, before_ns: int) -> _Loose:
    kept = [number for number, (_, modified_ns, _) in enumerate(found.entries) if modified_ns < before_ns]
    bad = {name: about for name, about in found.bad.items() if about[0] < before_ns}
    if len(kept) == len(found.entries):
        return _Loose(found.table, found.entries, bad)
    return _Loose(found.table.take(kept), [found.entries[number] for number in kept], bad)


def _index_file(path: Path) -> Path:
    key = hashlib.sha256(str(path.absolute()).encode(errors="surrogateescape")).hexdigest()[:16]
    return folder() / f"index-{key}.parquet"


_BAD = TypeAdapter(dict[str, tuple[int, int, str]])


def _read_index(file: Path) -> _Loose | None:
    """None where there is none that can be relied on."""
    if not file.exists():
        return None
    try:
        with opened(file) as index:
            about = index.schema_arrow.metadata or {}
            if about.get(b"layout") != LAYOUT.encode():
                return None
            found = read_groups(index, [*schema().names, "modified_ns", "size"])
            table, bad = checked(found.select(schema().names)), _BAD.validate_json(about[b"bad"])
            columns = (table["file"], found["modified_ns"], found["size"])
            # As tuples, which equal the entries that a scan makes, and are made in a tenth of the time.
            entries = cast("list[Entry]", [*zip(*(column.to_pylist() for column in columns), strict=True)])
    except PackError as error:
        logging.getLogger(__name__).info("index %s is made anew: %s", file, error)
        return None
    return _Loose(table, entries, bad)


def _write_index(file: Path, found: _Loose) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = found.table
    for name in ("modified_ns", "size"):
        place_ = Entry._fields.index(name)
        table = table.append_column(name, pa.array([entry[place_] for entry in found.entries], pa.int64()))
    content = BytesIO()
    about = {"layout": LAYOUT, "bad": _BAD.dump_json(found.bad)}
    pq.write_table(table.replace_schema_metadata(about), content, compression="zstd", write_page_checksum=True)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, content.getvalue())
    except (OSError, InputError) as error:  # slower next time, and nothing else
        logging.getLogger(__name__).warning("index %s is not written: %s", file, error.__cause__ or error)
