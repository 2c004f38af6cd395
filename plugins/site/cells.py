"""What stands behind a row: its cells, and every round's values."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effbench.plugin.text import missing
from effbench.store.packed import packed_record
from effbench.store.record import Record
from effbench.store.store import read_records

if TYPE_CHECKING:
    from effbench.board.leaderboard import Leaderboard

_SHAPE = ("seq_len", "batch_size", "world_size", "dtype", "device")
_FACTS = ("settings", "steps", "methodology", "weights", "data")


@dataclass
class Details:
    """Of all cells of a board."""

    folder: str
    """Where its records are, from the results folder on."""
    sessions: list[str] = field(default_factory=list)
    common: dict[str, Any] = field(default_factory=dict)
    """Facts that are the same of all its cells."""
    cells: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By cell id: its other facts, and lists with an entry per trial."""


def details_of(board: "Leaderboard", metrics: Sequence[str]) -> Details:
    """The trials of every cell with their values of these metrics, in the order of sessions and rounds."""
    frame = board.trials
    found = Details(_folder(Path(frame["file"].iloc[0]), board))
    trials: dict[tuple[str, str, int], dict[str, Any]] = {}
    values: dict[tuple[str, str, int], dict[str, float]] = {}
    for entry in frame.drop_duplicates(["cell_id", "session", "round"]).to_dict("records"):
        trials[entry["cell_id"], entry["session"], entry["round"]] = {str(key): value for key, value in entry.items()}
    shown = frame[frame["metric"].isin(metrics)]
    keys = zip(shown["cell_id"], shown["session"], shown["round"], shown["metric"], shown["value"], strict=True)
    for cell, session, number, metric, value in keys:
        values.setdefault((cell, session, number), {})[metric] = value
    found.sessions = sorted({session for _, session, _ in trials})
    by_cell: dict[str, list[tuple[str, str, int]]] = {}
    for key in sorted(trials, key=lambda key: (key[0], key[2], key[1])):
        by_cell.setdefault(key[0], []).append(key)
    for cell, keys_ in by_cell.items():
        columns = _columns([values.get(key, {}) for key in keys_], metrics)
        found.cells[cell] = _cell(cell, [trials[key] for key in keys_], found.sessions) | {"values": columns}
    _hoist(found)
    return found


def _cell(cell: str, trials: Sequence[dict[str, Any]], sessions: Sequence[str]) -> dict[str, Any]:
    """Its facts, and what its trials were; what few of them have is told by their place in the list."""

    def some(say: Callable[[dict[str, Any]], str]) -> dict[str, str]:
        return {str(place): said for place, trial in enumerate(trials) if (said := say(trial))}

    return {
        "id": cell,
        **{name: trials[0][name] for name in (*_SHAPE, *_FACTS)},
        **_recipe(trials),
        "round": [trial["round"] for trial in trials],
        "session": same([sessions.index(trial["session"]) for trial in trials]),
        "lost": some(lambda t: f"{t['status']}: {_text(t['error'])}" if t["status"] != "ok" else ""),
        "dirty": some(lambda t: _text(t["dirty"])),
        "files": some(lambda t: _unusual(t["file"], f"{cell}.r{t['round']}.json")),
        "samples": same([_unusual(_text(t["samples"]), f"{cell}.r{t['round']}.samples.zst", "none") for t in trials]),
    }


def _folder(file: Path, board: "Leaderboard") -> str:
    """The usual machine/suite, and nothing of where the results folder itself is."""
    parts = file.parts[-3:-1]
    return "/".join(parts) if parts == (board.machine, board.suite) else ""


def _recipe(trials: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What a record says of how its cell was made, beyond what the frame carries; nothing where none can be read."""
    files = (Path(trial["file"]) for trial in trials)
    record = next((record for file in files if (record := _record(file))), None)
    if record is None:
        return {}
    return {
        "techniques": [[name, dict(options)] for name, options in record.cell.techniques],
        "lr": record.cell.lr if record.phases.get("train") == "ok" else None,
        "versions": record.fingerprint.versions,
        "sources": record.fingerprint.techniques,
    }


def _record(file: Path) -> Record | None:
    if not file.is_file():
        return packed_record(file)
    return next((record for _, record in read_records(file).records), None)


def _columns(values: Sequence[dict[str, float]], metrics: Sequence[str]) -> dict[str, Any]:
    """A list per metric with an entry per trial; none of what no trial measured."""
    columns = {metric: [of_trial.get(metric) for of_trial in values] for metric in metrics}
    return {metric: same(column) for metric, column in columns.items() if not all(map(missing, column))}


def _unusual(file: str, usual: str, absent: str = "") -> str:
    """A file's name where it is not the usual one: names that follow from cell and round are not repeated."""
    name = Path(file).name if file else absent
    return "" if name == usual else name


def same(values: Any) -> Any:
    """One value where a list's are all the same, as counts are: they take a tenth of the page that way."""
    return values[0] if isinstance(values, list) and values and all(value == values[0] for value in values) else values


def _hoist(details: Details) -> None:
    """Facts that all cells share, once for all of them."""
    first, *others = details.cells.values()
    for name in (*_SHAPE, *_FACTS, "lr", "versions"):
        if name in first and all(name in cell and cell[name] == first[name] for cell in others):
            details.common[name] = first[name]
            for cell in details.cells.values():
                del cell[name]


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
