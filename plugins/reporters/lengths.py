"""Tables along the sequence length: how cost grows, from where a stack is as cheap as the baseline, and its ratios."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from effbench.plugin.layout import Table
from effbench.plugin.text import MISSING, in_bytes, in_seconds, interval, join, missing, number, plain, three

from .tables import Entry

if TYPE_CHECKING:
    import pandas as pd

    from effbench.board.leaderboard import Leaderboard

_COSTS = {
    "train.step_s": "train step",
    "infer.prefill_s": "prefill",
    "infer.decode_token_s": "decode token",
    "train.peak_memory_bytes": "train memory",
    "infer.peak_memory_bytes": "infer memory",
}
_RATIOS = {
    "train.step_s": "train speed at",
    "infer.prefill_s": "prefill speed at",
    "infer.decode_token_s": "decode speed at",
    "train.peak_memory_bytes": "train memory at",
    "infer.peak_memory_bytes": "infer memory at",
}


def length_tables(board: "Leaderboard") -> list[Table]:
    """None where a board has too few lengths."""
    if board.scaling is None or board.by_length is None:
        return []
    scaling, by_length = _labelled(board.scaling), _labelled(board.by_length)
    baselines = {entry["stack"] for entry in scaling if entry["crossover_words"] == "baseline"}
    tables = [
        _across("cost grows as", scaling, "metric", _COSTS, _growth),
        _across("as cheap from", scaling, "metric", _COSTS, _crossover),
    ]
    lengths = {n: str(n) for n in sorted({entry["seq_len"] for entry in by_length})}
    for metric, title in _RATIOS.items():
        of_metric = [e | ({"ratio": None} if e["stack"] in baselines else {}) for e in by_length if e["metric"] == metric]
        tables.append(_across(title, of_metric, "seq_len", lengths, _ratio))
    return [(titles, rows) for titles, rows in tables if len(titles) > 1]


def length_legend(board: "Leaderboard") -> str:
    """How to read them; empty where there are none."""
    if board.scaling is None:
        return ""
    return (
        "Cost grows as: k in cost ~ length^k, and which of a + b·(constant, n, n log n, n√n, n²) the costs support; ≈: none is "
        "right within the noise, these are nearest. As cheap from: the length from which the cost is at most the baseline's "
        "and stays so; ≤: at every length measured, >: at none to the last; alone, missing: only the stack, only the baseline "
        "was measured there; unclear: the data cannot tell. By length, a cost without × is the baseline's own, or of a stack "
        "whose baseline was not measured there."
    )


def _labelled(frame: "pd.DataFrame") -> list[Entry]:
    """Entries with a name that tells batch sizes and dtypes apart where there are several."""
    several = [name for name in ("batch_size", "dtype") if frame[name].nunique() > 1]
    entries: list[Entry] = [{str(key): value for key, value in entry.items()} for entry in frame.to_dict("records")]
    words = {"batch_size": "batch ", "dtype": ""}
    return [e | {"label": ", ".join([e["stack"], *(f"{words[name]}{e[name]}" for name in several)])} for e in entries]


def _across(title: str, entries: list[Entry], key: str, columns: dict[Any, str], show: Callable[[Entry], str]) -> Table:
    """One row per label and one column per value of `key`, those without anything to show left out."""
    cells = {(entry["label"], entry[key]): show(entry) for entry in entries}
    labels = list(dict.fromkeys(entry["label"] for entry in entries))
    shown = [column for column in columns if any(cells.get((label, column), MISSING) != MISSING for label in labels)]
    rows = [[plain(label), *(cells.get((label, column), MISSING) for column in shown)] for label in labels]
    return [title, *(columns[column] for column in shown)], rows


def _growth(entry: Entry) -> str:
    """`1.02 [1.00, 1.04] n`."""
    estimate = join(" ", number(entry["exponent"], _two), interval(entry["low"], entry["high"], _two))
    return join("\n", estimate, plain(entry["classes"]))


def _two(value: float) -> str:
    return f"{round(value, 2) + 0:.2f}"  # + 0 turns -0.0 into 0.0


def _crossover(entry: Entry) -> str:
    return plain(entry["crossover_words"]).replace("; ", "\n")


def _ratio(entry: Entry) -> str:
    """`1.23× [1.18, 1.29]` of speed or bytes; the cost itself where it is not compared with another."""
    time = entry["metric"].endswith("_s")
    ratio, low, high = entry["ratio"], entry["low"], entry["high"]
    if missing(ratio):
        return number(entry["value"], in_seconds if time else in_bytes)
    if time:
        ratio, low, high = 1 / ratio, *(None if missing(end) else 1 / end for end in (high, low))
    return join("\n", f"{three(ratio)}×", interval(low, high, three))
