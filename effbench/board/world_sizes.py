"""Parallel stacks at every world size, against the same stack without its parallel techniques on a single rank."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from effbench.board.measures import MEASURES, compare
from effbench.board.rows import Row, rows_of
from effbench.board.table import status_of
from effbench.store.machine import Machine

if TYPE_CHECKING:
    import pandas as pd

SPEEDS = ("train_speed", "prefill_speed", "decode_speed")
"""Keys of the measures that are divided by ranks."""
MEMORY = ("train_memory", "infer_memory")
"""Keys of those that are of one rank, the one that needs most."""
RANK_METRICS = ("train.communication_bytes", "train.exposed_communication_share", "train.idle_share")
"""What communication and waiting take of a training step; shown, and compared with nothing: a single rank has none of it."""
_COMPARED = tuple(measure for measure in MEASURES if measure.key in (*SPEEDS, *MEMORY))
_PARTS = ("", "_ratio", "_low", "_high", "_verdict")
_PER_RANK = ("_per_device", "_efficiency", "_per_core")


def columns(own: Sequence[str] = ()) -> list[str]:
    """The columns of the view; `own` are the metrics that its parallel techniques count themselves."""
    found = ["stack", "world_size", "parallel", "serial", "scaling"]
    for measure in _COMPARED:
        found += [f"{measure.key}{part}" for part in (*_PARTS, *(_PER_RANK if measure.key in SPEEDS else ()))]
    return [*found, "core_bound", *RANK_METRICS, *own, "rounds", "status"]


@dataclass(frozen=True)
class WorldSizes:
    """What a board shows across world sizes."""

    rows: "pd.DataFrame"
    """A row per stack and world size; columns as `columns` says."""
    notes: list[str]


@dataclass(frozen=True)
class _Point:
    """A stack at one world size."""

    row: Row
    world_size: int
    parallel: Mapping[str, int]
    """Degree by parallel technique."""
    applied: str
    """What tells its techniques and their options from others'."""
    serial: str
    """The same of its techniques that are not parallel."""
    base: "_Point | None" = None
    """What it is compared with."""

    @property
    def is_parallel(self) -> bool:
        """Whether it has ranks to spread over, be it a single one."""
        return bool(self.parallel) or self.world_size > 1


@dataclass(frozen=True)
class _Cores:
    """What ranks on a CPU share; `cores` is None where that is not known."""

    cores: int | None
    threads: int
    """Of each rank."""

    def bound(self, world_size: int) -> float | None:
        """How many times as fast as one of them so many ranks can be at most."""
        return None if self.cores is None else min(world_size * self.threads, self.cores) / min(self.threads, self.cores)


def world_sizes_of(frame: "pd.DataFrame", delta: float) -> WorldSizes | None:
    """Of the trials of all world sizes on one machine, model and workload; None where there is a single rank alone."""
    if not (frame["world_size"] > 1).any():
        return None
    everything = list(_points(frame))
    parallel = [replace(point, base=_serial(point, everything)) for point in everything if point.is_parallel]
    serial = {id(point.base.row) for point in parallel if point.base}
    alone = [replace(point, base=point) for point in everything if not point.is_parallel and id(point.row) in serial]
    points = sorted([*parallel, *alone], key=_order)
    rows = {point.row: point.base.row if point.base else None for point in points}
    found: list[str] = []
    compared = [(measure.key, compare(measure, rows, delta, found)) for measure in _COMPARED]
    own = sorted({name for point in points for name in point.row.values if _counts_itself(point, name)})
    counted = [(name, _means([*rows], name)) for name in (*RANK_METRICS, *own)]
    cores = _cores(frame)
    entries = []
    for point in points:
        bound = cores.bound(point.world_size) if cores else None
        entry = _identity(point) | {"scaling": frame["scaling"].iloc[0], "core_bound": bound}
        for key, columns_of in compared:
            entry |= columns_of[point.row]
            entry |= _per_rank(key, entry) if key in SPEEDS else {}
        entries.append(entry | {name: means.get(point.row) for name, means in counted})
    notes = [f"across world sizes: {note}" for note in dict.fromkeys(found)]
    return WorldSizes(_frame(entries, columns(own)), [*notes, *_serial_notes(points), *_core_notes(points, cores)])


def _frame(entries: Sequence[Mapping[str, Any]], shown: list[str]) -> "pd.DataFrame":
    import pandas as pd

    others = ("stack", "world_size", "parallel", "serial", "scaling", "rounds", "status")
    numbers = [name for name in shown if name not in others and not name.endswith("_verdict")]
    # Without it, a column in which all is missing would be one of objects.
    return pd.DataFrame(entries, columns=shown).astype(dict.fromkeys(numbers, float))


def _points(frame: "pd.DataFrame") -> Iterator[_Point]:
    for world_size, own in frame.groupby("world_size", sort=True):
        cells = own.drop_duplicates("cell_id").set_index("cell_id")[["parallel", "applied", "serial"]].to_dict("index")
        for row in rows_of(own):
            cell = cells[min(row.cells)]
            yield _Point(row, int(str(world_size)), json.loads(cell["parallel"]), cell["applied"], cell["serial"])


def _counts_itself(point: _Point, metric: str) -> bool:
    """Whether it is a metric of one of the parallel techniques: those begin with the technique's name."""
    return metric.partition(".")[0] in point.parallel and metric not in RANK_METRICS


def _serial(point: _Point, points: Sequence[_Point]) -> _Point | None:
    """The stack without the parallel techniques on a single rank; where there is none, the stack itself on one.

    Where several are the same, as with another learning rate, the one that shares most trials.
    """
    single = [other for other in points if other.world_size == 1]
    same = [other for other in single if not other.parallel and other.applied == point.serial]
    itself = [other for other in single if other.applied == point.applied]
    trials = _trials(point.row)
    return max(same or itself, key=lambda other: len(trials & _trials(other.row)), default=None)


def _trials(row: Row) -> set[Any]:
    return {trial for values in row.values.values() for trial in values}


def _order(point: _Point) -> tuple[str, bool, str, int]:
    """A single rank's stack before those that are compared with it."""
    return ((point.base or point).row.label, point.is_parallel, point.row.label, point.world_size)


def _identity(point: _Point) -> dict[str, Any]:
    return {
        "stack": point.row.label,
        "world_size": point.world_size,
        "parallel": " × ".join(f"{name} {degree}" for name, degree in point.parallel.items()),
        "serial": point.base.row.label if point.base else None,
        "rounds": len(point.row.rounds()),
        "status": status_of(point.row),
    }


def _per_rank(key: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Throughput / N, and the speedup over what N ranks could give at most: N, or what the cores that they share allow."""
    value, ratio, bound = entry[key], entry.get(f"{key}_ratio"), entry["core_bound"]
    return {
        f"{key}_per_device": value and value / entry["world_size"],
        f"{key}_efficiency": ratio and ratio / entry["world_size"],
        f"{key}_per_core": ratio and bound and ratio / bound,
    }


def _means(rows: Sequence[Row], metric: str) -> dict[Row, float]:
    """Means over rounds, then over the cells of which all rows that have it have it; zeros count, unlike in ratios."""
    values = {row: row.values[metric] for row in rows if row.values.get(metric)}
    common = set.intersection(*({trial.shape for trial in found} for found in values.values())) if values else set()
    return {
        row: fmean(fmean(v for trial, v in found.items() if trial.shape == shape) for shape in sorted(common))
        for row, found in values.items()
        if common
    }


def _cores(frame: "pd.DataFrame") -> _Cores | None:
    """Of the machine that the records are of, as the file beside them says; None of GPUs, which ranks do not share."""
    trial = frame.iloc[0]
    if trial["device"] != "cpu":
        return None
    file = Path(trial["file"]).parent.parent / "machine.json"
    try:
        cores = Machine.model_validate_json(file.read_text(encoding="utf-8")).cores
    except (OSError, ValueError):
        cores = 0  # the board says so
    return _Cores(cores if cores > 0 else None, int(trial["threads"]))


def _serial_notes(points: Sequence[_Point]) -> Iterator[str]:
    """Which stacks are compared with something else than what the rest is."""
    for label, base in dict.fromkeys((point.row.label, point.base and point.base.is_parallel) for point in points):
        if base is None:
            yield f"`{label}`: neither it nor the same without its parallel techniques stands at a single rank: no speedup"
        elif base:
            yield (
                f"`{label}`: the same without its parallel techniques was not measured, so it is compared with itself on a "
                "single rank, where they change nothing"
            )


def _core_notes(points: Sequence[_Point], cores: _Cores | None) -> Iterator[str]:
    """How far the machine's cores bound the speedup, and with it the efficiency."""
    if cores is None:
        return
    if cores.cores is None:
        yield "no machine.json above the records: whether ranks share cores is not known"
        return
    sizes = sorted({point.world_size for point in points if (cores.bound(point.world_size) or 0) < point.world_size})
    if sizes:
        ranks = f"{' or '.join(map(str, sizes))} ranks of {_counted(cores.threads, 'thread')}"
        yield (
            f"{_counted(cores.cores, 'core')}: {ranks} share them, which allows a speedup of "
            f"{cores.bound(sizes[-1]):g} at most, beside what caches give: efficiency is bounded by the cores; per core: "
            "speedup / what the cores allow"
        )


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number > 1 else ''}"
