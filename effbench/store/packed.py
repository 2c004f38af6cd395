"""Packs: trials of one folder in a Parquet file, each with its columns, its record's exact JSON and its sidecar's bytes.

A pack may come from anyone: whatever is wrong with one is a `PackError`, and nothing in it names a file to open.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pydantic import ValidationError

from effbench.store.columns import LAYOUT, Columns, schema
from effbench.store.record import Record
from effbench.store.scan import NOT_RECORDS, PACK_PREFIX, PACK_SUFFIX

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_SIDECAR_SUFFIX = ".samples.zst"
ROWS_PER_GROUP = 8192
"""Parquet's unit of reading. Fewer cost time to load; more, to find one sidecar."""
_MAX_ROWS = 10_000_000
_MAX_VALUES = 2**29
_MAX_BYTES = 2**32
"""Unpacked, of all that is read at once. A few bytes of Parquet may claim to be billions of values."""
_BYTES = ("record", "sidecar")


class PackError(ValueError):
    """What is wrong with a pack, in one line without its name."""


class PackedTrial(NamedTuple):
    """The files that a trial was packed from."""

    name: str
    """Of the record's."""
    record: bytes
    samples: str | None
    """Name of the sidecar's; None where there is none."""
    sidecar: bytes | None


@cache
def pack_schema() -> "pa.Schema":
    """The layout's columns, `file` being a name in the pack's folder, and the bytes of both files."""
    import pyarrow as pa

    return schema().append(pa.field("record", pa.binary(), nullable=False)).append(pa.field("sidecar", pa.binary()))


def sidecar_name(record_name: str) -> str:
    """What the sidecar of a record's file is called. Under another name, a pack could replace any file when it is unpacked."""
    return record_name.removesuffix(".json") + _SIDECAR_SUFFIX


def read_pack(file: Path) -> "pa.Table":
    """The columns as they stand: `checked` says whether boards may rely on them. PackError where there are none.

    `samples` is `PACK/NAME`, which `packed_sidecar` resolves.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    with opened(file) as pack:
        old = (pack.schema_arrow.metadata or {}).get(b"layout") != LAYOUT.encode()
        table = _derived(pack) if old else read_groups(pack, schema().names)
        if not table.schema.equals(schema()):
            raise PackError("not a pack of trials")
        _check_names(table["file"])
        reference = pc.binary_join_element_wise(pa.scalar(file.name), table["file"], "/")
        samples = pc.if_else(pc.is_valid(table["samples"]), reference, pa.scalar(None, pa.string()))
        return table.set_column(table.schema.get_field_index("samples"), schema().field("samples"), samples)


def columns_agree(file: Path) -> bool:
    """Whether a pack's columns are those of the records beside them, as loading takes them to be. Reads all of its JSON."""
    with opened(file) as pack:
        derived = checked(_derived(pack))
    same: bool = checked(read_pack(file)).drop_columns("samples").equals(derived.drop_columns("samples"))
    return same


def packed_trials(file: Path) -> Iterator[PackedTrial]:
    """The files that were packed. PackError, before the first or between two, where the pack is none or damaged."""
    with opened(file) as pack:
        for group in range(pack.num_row_groups):
            found = pack.read_row_group(group, columns=["file", "record", "samples", "sidecar"])
            if found.schema.types != [pack_schema().field(name).type for name in found.schema.names]:
                raise PackError("not a pack of trials")
            _check_names(found["file"])
            columns = [found[name].to_pylist() for name in ("file", "record", "samples", "sidecar")]
            for name, record, samples, sidecar in zip(*columns, strict=True):
                kept = samples if samples == sidecar_name(name) else None
                yield PackedTrial(name, record or b"", kept, sidecar if kept else None)


def packed_sidecar(reference: Path) -> bytes | None:
    """The sidecar that `PACK/NAME` refers to; None where the pack has none. KeyError where it has no such trial."""
    file = reference.parent
    modified_ns = file.stat().st_mtime_ns
    group, row = _places(file, modified_ns)[reference.name]
    found: bytes | None = _sidecars(file, modified_ns, group)[row].as_py()
    return found


def packed_record(file: Path) -> Record | None:
    """The record that was packed from a file, as the newest pack beside it has it; None where none has."""
    for pack_file in sorted(file.parent.glob(f"{PACK_PREFIX}*{PACK_SUFFIX}"), reverse=True):
        try:
            if place := _places(pack_file, pack_file.stat().st_mtime_ns).get(file.name):
                with opened(pack_file) as pack:
                    record = pack.read_row_group(place[0], columns=["record"])["record"][place[1]]
                    return Record.model_validate_json(record.as_py())
        except PackError:  # named where results are read
            continue
    return None


def is_packed(reference: Path) -> bool:
    """Whether it is `PACK/NAME`."""
    return reference.parent.suffix == PACK_SUFFIX and reference.parent.is_file()


def read_groups(pack: "pq.ParquetFile", names: list[str]) -> "pa.Table":
    """Those columns, one group after another: Arrow reads no lists at once whose dictionaries differ between groups."""
    import pyarrow as pa

    groups = [pack.read_row_group(number, columns=names) for number in range(pack.num_row_groups)]
    return pa.concat_tables(groups) if groups else pack.schema_arrow.empty_table().select(names)


def checked(table: "pa.Table") -> "pa.Table":
    """The table in the one form that boards rely on: each column's dictionary is the same in all of its chunks.

    PackError where it is not of the layout, or holds what cannot be.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if not table.schema.equals(schema()):
        raise PackError("not a pack of trials")
    with _told():
        table = table.unify_dictionaries()
        table.validate(full=True)
    for field in schema():
        column = table[field.name]
        if not field.nullable and column.null_count:
            raise PackError(f"{field.name} is missing")
        if pa.types.is_dictionary(field.type) and column.num_chunks:
            _check_dictionary(column.chunk(0))
    for chunk in table["metrics"].chunks:
        _check_metrics(chunk.values)
    for name in ("options", "parallel"):
        if not all(_is_object(text) for text in pc.unique(table[name].cast("string")).to_pylist()):
            raise PackError(f"{name} is not a JSON object")
    return table


def _check_metrics(metrics: "pa.StructArray") -> None:
    if metrics.null_count or any(metrics.field(name).null_count for name in ("metric", "value", "n", "unit")):
        raise PackError("a metric lacks its name, value, count or unit")
    for name in ("metric", "unit"):
        _check_dictionary(metrics.field(name))


def _check_dictionary(words: "pa.DictionaryArray") -> None:
    import pyarrow.compute as pc

    if words.dictionary.null_count or pc.count_distinct(words.dictionary).as_py() != len(words.dictionary):
        raise PackError("its dictionaries are damaged")


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _check_names(names: "pa.ChunkedArray") -> None:
    """As `is_plain` and `is_record_name` say, of all at once: one by one it would take longer than all the rest."""
    import pyarrow as pa
    import pyarrow.compute as pc

    plain = pc.match_substring_regex(names, r"^[^/\\\x00.][^/\\\x00]*\.json$")
    record = pc.and_(plain, pc.invert(pc.is_in(names, pa.array(sorted(NOT_RECORDS)))))
    if names.null_count or not pc.all(record, min_count=0).as_py():
        raise PackError("a trial's name is none of a record's file")
    if pc.count_distinct(names).as_py() < len(names):
        raise PackError("it has two trials of the same name")


@contextmanager
def opened(file: Path) -> "Iterator[pq.ParquetFile]":
    """PackError for whatever Arrow, or a limit, says against it."""
    import pyarrow.parquet as pq

    with _told(), pq.ParquetFile(file, page_checksum_verification=True) as pack:
        _check_size(pack)
        yield pack


@contextmanager
def _told() -> Iterator[None]:
    """What goes wrong with a table of others, as a PackError."""
    import pyarrow as pa

    try:
        yield
    except PackError:
        raise
    except ValidationError as error:
        raise PackError(error.errors()[0]["msg"]) from error
    # Parquet is read by C++, which says of a damaged file what it happens to stumble over.
    except (pa.ArrowException, OSError, ValueError, KeyError, IndexError, OverflowError, MemoryError) as error:
        raise PackError(f"damaged, or not Parquet ({_first_line(error)})") from error


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]


def _check_size(pack: "pq.ParquetFile") -> None:
    """Before anything is read: what the file says of itself."""
    about = pack.metadata
    groups = [about.row_group(number) for number in range(about.num_row_groups)]
    if about.num_rows > _MAX_ROWS or sum(group.num_rows for group in groups) != about.num_rows:
        raise PackError(f"{about.num_rows} rows are more than a pack has")
    for group in groups:
        chunks = [group.column(number) for number in range(group.num_columns)]
        if any(chunk.num_values > _MAX_VALUES or chunk.total_uncompressed_size > _MAX_BYTES for chunk in chunks):
            raise PackError("it unpacks to more than trials can be")


def _derived(pack: "pq.ParquetFile") -> "pa.Table":
    """Of a pack in another layout, from what it was packed from."""
    columns = Columns()
    for group in range(pack.num_row_groups):
        found = pack.read_row_group(group, columns=["file", "record"])
        for name, record in zip(found["file"].to_pylist(), found["record"].to_pylist(), strict=True):
            columns.add(name, Record.model_validate_json(record))
    return columns.table()


@lru_cache(maxsize=64)
def _places(file: Path, modified_ns: int) -> dict[str, tuple[int, int]]:
    """Row group and row of each trial. `modified_ns` stands for the content."""
    with opened(file) as pack:
        groups = (pack.read_row_group(number, columns=["file"])["file"].to_pylist() for number in range(pack.num_row_groups))
        return {name: (number, row) for number, names in enumerate(groups) for row, name in enumerate(names)}


@lru_cache(maxsize=2)
def _sidecars(file: Path, modified_ns: int, group: int) -> "pa.ChunkedArray":
    """Boards go through a pack's trials about in its order, so that the last ones read are the next ones wanted."""
    with opened(file) as pack:
        return pack.read_row_group(group, columns=["sidecar"])["sidecar"]
