"""The same on several machines: each one's stacks against its own baseline, side by side. Nothing is ranked across machines."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from effbench.board.leaderboard import Leaderboard
from effbench.board.rows import Shape, common_shapes

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = (
    "stack", "machine", "rank", "ratio", "low", "high", "verdict",
    "quality", "quality_difference", "quality_low", "quality_high", "quality_verdict", "rounds", "status",
)  # fmt: skip
"""A row per stack and machine; the ratio is of the metric that the boards rank by."""
_QUALITY = ("quality", "quality_difference", "quality_low", "quality_high", "quality_verdict")
_ALIKE = ("methodology", "weights", "settings")


@dataclass(frozen=True)
class SideBySide:
    """One board as several machines measured it."""

    title: str
    suite: str
    model: str
    workload: str
    world_size: int
    slice: Mapping[str, str]
    metric: str | None
    """That `ratio` is of."""
    quality_metric: str
    baseline: str | None
    machines: tuple[str, ...]
    rows: "pd.DataFrame"
    """Columns as COLUMNS; empty where no two machines measured what can be compared."""
    notes: list[str]


def side_by_side(boards: Sequence[Leaderboard]) -> list[SideBySide]:
    """What several machines measured alike, for each suite, model, workload, world size and slice; empty for one machine.

    Alike are boards of the same methodology, weights, settings, baseline, margin and metric. Where a machine measured
    otherwise, a note says in what, and it stands in a table with those alike, or in none.
    """
    found = []
    for _, group in groupby(sorted(boards, key=_what), key=_what):
        same = list(group)
        if len({board.machine for board in same}) > 1:
            found += _of_group(same)
    return found


def _what(board: Leaderboard) -> tuple[Any, ...]:
    return board.suite, board.model, board.workload, board.world_size, sorted(board.slice.items())


def _of_group(boards: Sequence[Leaderboard]) -> list[SideBySide]:
    by_terms: dict[tuple[str, ...], list[Leaderboard]] = {}
    for board in boards:
        by_terms.setdefault(tuple(_terms(board).values()), []).append(board)
    alike = sorted(by_terms.values(), key=lambda some: -len(some))
    notes = list(dict.fromkeys(_apart(alike[0][0], some[0]) for some in alike[1:]))
    tables = [some for some in alike if len({board.machine for board in some}) > 1]
    return [_compared(some, notes) for some in tables] or [_compared(alike[0], notes, empty=True)]


def _terms(board: Leaderboard) -> dict[str, str]:
    """What two machines' boards must share to stand side by side, in words."""
    shared = {name: " and ".join(sorted(map(str, board.trials[name].unique()))) for name in _ALIKE}
    own = {"baseline": board.baseline, "metric": board.ranked_by, "margin": board.delta, "score": board.quality_metric}
    return shared | {name: str(value) for name, value in own.items()}


def _apart(first: Leaderboard, other: Leaderboard) -> str:
    one, two = _terms(first), _terms(other)
    different = [f"{name} ({one[name]} / {two[name]})" for name in one if one[name] != two[name]]
    return f"not side by side: {first.machine} and {other.machine} have other {', '.join(different)}"


def _compared(boards: Sequence[Leaderboard], notes: Sequence[str], *, empty: bool = False) -> SideBySide:
    import pandas as pd

    first = boards[0]
    named = _named(boards)
    texts = {name: _texts(board) for name, board in named.items()}
    same_text = {name for name, text in texts.items() if text and text == next(filter(None, texts.values()))}
    entries = [] if empty else [entry for name, board in named.items() for entry in _entries(board, name, name in same_text)]
    order = {label: place for place, label in enumerate(label for board in boards for label in board.rows["stack"])}
    entries.sort(key=lambda entry: (order[entry["stack"]], entry["machine"]))
    own = [] if empty else [*_text_notes(texts, same_text), *_cell_notes(named)]
    return SideBySide(
        title=first.title,
        suite=first.suite,
        model=first.model,
        workload=first.workload,
        world_size=first.world_size,
        slice=first.slice,
        metric=first.ranked_by,
        quality_metric=first.quality_metric,
        baseline=first.baseline,
        machines=tuple(sorted(named)),
        rows=pd.DataFrame(entries, columns=[*COLUMNS]),
        notes=[*notes, *own],
    )


def _named(boards: Sequence[Leaderboard]) -> dict[str, Leaderboard]:
    """Boards by machine; one that measured on several devices has a board of each, which its name then tells apart."""
    several = {board.machine for board in boards if sum(other.machine == board.machine for other in boards) > 1}
    return {
        f"{board.machine} ({board.trials['device'].iloc[0]})" if board.machine in several else board.machine: board
        for board in boards
    }


def _entries(board: Leaderboard, name: str, with_quality: bool) -> Iterator[dict[str, Any]]:
    key = next((measure.key for measure in board.table.measures if measure.metric == board.ranked_by), None)
    for row in board.rows.to_dict("records"):
        ratio = {part: row[f"{key}_{part}"] for part in ("ratio", "low", "high", "verdict")} if key else {}
        score = {name: row[name] for name in _QUALITY} if with_quality else {}
        own = {name: row[name] for name in ("stack", "rank", "rounds", "status")}
        yield {"machine": name} | own | ratio | score


def _texts(board: Leaderboard) -> frozenset[str]:
    """Hashes of the text that the shown scores are of."""
    scored = [row for row in board.table.rows if board.table.quality_of(row) is not None]
    return frozenset().union(*(row.data for row in scored))


def _text_notes(texts: Mapping[str, frozenset[str]], same: set[str]) -> Iterator[str]:
    if others := [machine for machine, text in texts.items() if text and machine not in same]:
        yield f"{', '.join(others)}: quality was measured on other text than on {', '.join(sorted(same))}, and is not shown"


def _cell_notes(named: Mapping[str, Leaderboard]) -> Iterator[str]:
    """Ratios over other cells are of other work: a stack may gain at one length and lose at another."""
    cells = {name: _cells(board) for name, board in named.items()}
    if len(set(map(frozenset, cells.values()))) > 1:
        counts = ", ".join(f"{machine} on {len(shapes)}" for machine, shapes in cells.items())
        yield f"compared on other cells, so that the ratios are not of the same work: {counts}; filter to those of all"


def _cells(board: Leaderboard) -> set[Shape]:
    return common_shapes(board.table.rows, board.ranked_by) if board.ranked_by else set()
