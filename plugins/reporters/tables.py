"""The tables a board is shown as, whatever the format."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from effbench.plugin.layout import Table
from effbench.plugin.text import (
    MISSING,
    clean,
    counted,
    human_of,
    in_bytes,
    interval,
    join,
    missing,
    number,
    plain,
    signed,
    three,
)

if TYPE_CHECKING:
    from effbench.board.leaderboard import Leaderboard

Entry = dict[str, Any]
_BASELINE = "1× (baseline)"


class Column(NamedTuple):
    """One shown column; left out where no row has anything to show."""

    title: str
    show: Callable[[Entry], str]
    news: Callable[[list[Entry]], bool] = lambda entries: True
    """Whether it says more than the others, in a table that is wide already."""


def _speed(title: str, key: str) -> Column:
    return Column(title, lambda entry: ratio(entry, key, " "))


def size(title: str, key: str, human: Callable[[float], str], news: Callable[[list[Entry]], bool] = lambda _: True) -> Column:
    """A figure and its ratio to the baseline."""

    def show(entry: Entry) -> str:
        beside = ratio(entry, key, "\n")
        return join(" ", number(entry[key], human), "" if beside == _BASELINE else beside)

    return Column(title, show, news)


def _any_other(key: str) -> Callable[[list[Entry]], bool]:
    """Whether some row is not the same as the baseline."""
    return lambda entries: any(plain(entry[f"{key}_verdict"]) not in (MISSING, "baseline", "SAME") for entry in entries)


def _any_zeros(entries: list[Entry]) -> bool:
    """Whether leaving zeros out makes some row smaller by more than a percent."""
    return any(
        not missing(e["sparse"]) and not missing(e["checkpoint"]) and e["sparse"] < 0.99 * e["checkpoint"] for e in entries
    )


_ROW = [Column("rank", lambda e: plain(e["rank"])), Column("stack", lambda e: plain(e["stack"]))]
_SPEED = [
    Column("techniques", lambda e: plain(e["techniques"])),
    _speed("train speed", "train_speed"),
    _speed("prefill speed", "prefill_speed"),
    _speed("decode speed", "decode_speed"),
    Column("cells", lambda e: plain(e["cells"])),
    Column("status", lambda e: plain(e["status"])),
]


def tables(board: "Leaderboard") -> list[Table]:
    """Speed, what it costs, what is kept."""
    cost = [
        size("train memory", "train_memory", in_bytes),
        size("infer memory", "infer_memory", in_bytes),
        size("trainable", "trainable", counted),
        Column("steps", lambda e: number(e["steps"], lambda x: f"{x:.0f}")),
        Column(clean(board.quality_metric), quality),
    ]
    bytes_kept = [
        size("checkpoint", "checkpoint", in_bytes),
        size("without zeros", "sparse", in_bytes, _any_zeros),
        Column("bits/weight", lambda e: number(e["bits"], lambda x: f"{x:.3g}"), _any_other("bits")),
        size("delta", "delta", in_bytes),
        size("KV cache", "kv_cache", in_bytes, _any_other("kv_cache")),
    ]
    entries = [{str(key): value for key, value in entry.items()} for entry in board.rows.to_dict("records")]
    extra = [size(clean(metric), key, human_of(metric)) for key, metric in board.extra_columns.items()]
    wanted = [(_ROW, _SPEED), (_ROW[1:], cost), (_ROW[1:], bytes_kept), (_ROW[1:], extra)]
    return [table for names, columns in wanted if (table := laid_out(names, columns, entries))]


def laid_out(names: list[Column], columns: list[Column], entries: list[Entry]) -> Table | None:
    """The columns that have something to show behind those that name the rows; None where there are none."""
    shown = [c for c in columns if c.news(entries) and any(c.show(entry) != MISSING for entry in entries)]
    kept = [*names, *shown]
    return ([c.title for c in kept], [[c.show(entry) for c in kept] for entry in entries]) if shown else None


def heading(board: "Leaderboard") -> list[str]:
    """What was measured where, in lines."""
    first, last = board.rounds
    rounds = f"{last}" if first == last else f"{first} to {last}"
    lines = [
        board.title,
        f"machine {board.machine} · suite {board.suite} · model {board.model} · workload {board.workload} · rounds {rounds}",
        f"baseline {board.baseline or MISSING} · ranked by {board.ranked_by or MISSING} · δ = {_percent(board)}",
    ]
    return [clean(line) for line in lines]


def _percent(board: "Leaderboard") -> str:
    return f"{100 * board.delta:g} %"


def legend(board: "Leaderboard") -> str:
    """How to read the tables."""
    return (
        "Ratios to the baseline, 95 % intervals over rounds. Speed: above 1× is better; memory, parameters, bytes: below 1× "
        "is better. FASTER, SLOWER, SMALLER, LARGER, LOWER, HIGHER, BETTER, WORSE: the interval, adjusted for looks and "
        f"stacks, lies wholly beyond {_percent(board)}; SAME: wholly within; UNCLEAR: the data cannot tell. Rank: from 1 + the "
        f"rows clearly better to N - the rows clearly worse. {MISSING}: not measured."
    )


def ratio(entry: Entry, key: str, gap: str) -> str:
    """`1.23× [1.18, 1.29] FASTER`."""
    if entry[f"{key}_verdict"] == "baseline":
        return _BASELINE
    return _with_interval(number(entry[f"{key}_ratio"], lambda x: f"{three(x)}×"), entry, key, three, gap)


def quality(entry: Entry) -> str:
    """`2.512 (+0.012) [0.004, 0.020] SAME`."""
    score = number(entry["quality"], lambda x: f"{x:.3f}")
    difference = number(entry["quality_difference"], signed)
    if entry["quality_verdict"] == "baseline" or difference == MISSING:
        return score
    return _with_interval(f"{score} ({difference})", entry, "quality", signed, "\n")


def _with_interval(estimate: str, entry: Entry, key: str, human: Callable[[float], str], gap: str) -> str:
    """Line breaks are where a narrow table breaks; elsewhere they become spaces."""
    if estimate == MISSING:
        return MISSING
    low, high, word = (entry[f"{key}_{part}"] for part in ("low", "high", "verdict"))
    return join("\n", join(gap, estimate, interval(low, high, human)), plain(word))
