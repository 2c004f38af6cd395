"""Tables across world sizes: what several ranks gain together and each, what they hold and exchange."""

from typing import TYPE_CHECKING

from effbench.plugin.layout import Table
from effbench.plugin.text import MISSING, clean, counted, human_of, in_bytes, missing, number, plain, share, three

from .tables import Column, Entry, laid_out, ratio, size

if TYPE_CHECKING:
    from effbench.board.leaderboard import Leaderboard

_PHASES = {"train_speed": "training", "prefill_speed": "prefill", "decode_speed": "decoding"}


def world_size_tables(board: "Leaderboard") -> list[Table]:
    """None where a single rank alone was measured."""
    if board.world_sizes is None:
        return []
    entries = [{str(key): value for key, value in entry.items()} for entry in board.world_sizes.to_dict("records")]
    measured = {key: phase for key, phase in _PHASES.items() if not all(missing(entry[key]) for entry in entries)}
    found = [laid_out(_names(f"{phase} across world sizes"), _speeds(key), entries) for key, phase in measured.items()]
    found.append(laid_out(_names("memory and communication across world sizes"), _ranks(board), entries))
    return [table for table in found if table]


def world_size_legend(board: "Leaderboard") -> str:
    """How to read them; empty where there are none."""
    if board.world_sizes is None:
        return ""
    return (
        "Across world sizes nothing is ranked: N ranks cost N devices. Speedup: tokens/s of all ranks together over those of "
        "the stack named beside it, the same without its parallel techniques, on a single rank. Efficiency: speedup / N, under "
        "strong and weak scaling alike. Per core: speedup / what the cores allow, where ranks share them. Memory: of the rank "
        "that needs most, and its ratio to the single rank's. Communicated: in a step, by all ranks."
    )


def _names(title: str) -> list[Column]:
    return [Column(title, lambda e: plain(e["stack"])), Column("ranks", lambda e: plain(e["world_size"]))]


def _speeds(key: str) -> list[Column]:
    return [
        Column("spread over", lambda e: plain(e["parallel"]), _any_of_several_dimensions),
        Column("tokens/s", lambda e: number(e[key], counted)),
        Column("per device", lambda e: number(e[f"{key}_per_device"], counted)),
        Column("speedup", lambda e: ratio(e, key, " ")),
        Column("against", lambda e: plain(e["serial"]) if ratio(e, key, " ") != MISSING else MISSING),
        Column("efficiency", lambda e: number(e[f"{key}_efficiency"], three)),
        Column("per core", lambda e: number(e[f"{key}_per_core"], three), _any_shared_cores),
        _STATUS,
    ]


def _ranks(board: "Leaderboard") -> list[Column]:
    from effbench.board.world_sizes import RANK_METRICS, columns

    bytes_, exposed, idle = RANK_METRICS
    known = columns()
    own = [str(name) for name in board.world_sizes if name not in known] if board.world_sizes is not None else []
    return [
        size("train memory", "train_memory", in_bytes),
        size("infer memory", "infer_memory", in_bytes),
        Column("communicated", lambda e: number(e[bytes_], in_bytes)),
        Column("exposed", lambda e: number(e[exposed], share)),
        Column("idle", lambda e: number(e[idle], share)),
        *map(_own, own),
        _STATUS,
    ]


def _own(metric: str) -> Column:
    """A metric that a parallel technique counts itself."""
    return Column(clean(metric), lambda e: number(e[metric], human_of(metric)))


def _any_of_several_dimensions(entries: list[Entry]) -> bool:
    return any("×" in entry["parallel"] for entry in entries)


def _any_shared_cores(entries: list[Entry]) -> bool:
    return any(not missing(entry["core_bound"]) and entry["core_bound"] < entry["world_size"] for entry in entries)


def _any_lost(entries: list[Entry]) -> bool:
    return any(entry["status"] != "ok" for entry in entries)


_STATUS = Column("status", lambda e: plain(e["status"]), _any_lost)
