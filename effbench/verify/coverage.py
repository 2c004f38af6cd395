"""Whether a folder has what its suite asks for: cells, rounds, a baseline in each session, and quiet trials."""

from collections import defaultdict
from collections.abc import Iterator
from itertools import islice

from effbench.plan.suite import Suite
from effbench.plugin.cell import Cell, canonical_json
from effbench.verify.finding import Finding
from effbench.verify.membership import Point, axes_of, points_of
from effbench.verify.read import MOST_ROUNDS, SuiteFolder, Trial

_DIRTY, _MOSTLY_DIRTY = 0.05, 1 / 3
"""Shares of good trials: beyond the first a board loses precision, beyond the second the machine was not fit to measure on."""
_MOST_POINTS = 20_000
"""A suite may come from anyone, and a few axes are quickly more than a lifetime of cells."""


def check_coverage(folder: SuiteFolder) -> Iterator[Finding]:
    """A folder as a whole."""
    yield from _dirty(folder)
    yield from _not_ok(folder)
    if folder.suite and folder.trials:
        yield from _rounds(folder, folder.suite)
        yield from _missing_cells(folder, folder.suite)
        yield from _baselines(folder, folder.suite.baseline)


def _dirty(folder: SuiteFolder) -> Iterator[Finding]:
    good = [trial.record for trial in folder.trials if trial.record.status == "ok"]
    share = sum(record.dirty is not None for record in good) / len(good) if good else 0.0
    if share > _DIRTY:
        code, limit = ("mostly-dirty", _MOSTLY_DIRTY) if share > _MOSTLY_DIRTY else ("dirty", _DIRTY)
        detail = (
            f"{share:.1%} of {len(good)}, at most {limit:.0%}; `effbench run … --retry-failed` on a quieter machine mends them"
        )
        yield folder.finding(code, "other programs disturbed many trials", detail)


def _not_ok(folder: SuiteFolder) -> Iterator[Finding]:
    for trial in folder.trials:
        if trial.record.status not in ("ok", "skipped"):
            yield trial.finding("not-ok", f"a trial ended as {trial.record.status}", trial.record.headline)


def _rounds(folder: SuiteFolder, suite: Suite) -> Iterator[Finding]:
    """Rounds are the suite's, all of them: who may leave some out chooses the result."""
    found: dict[str, set[int]] = defaultdict(set)
    measured: dict[str, Cell] = {}
    for trial in folder.trials:
        found[trial.record.cell_id].add(trial.record.round)
        if trial.record.status == "ok":
            measured[trial.record.cell_id] = trial.record.cell
    for cell_id, cell in measured.items():
        own = suite.for_workload.get(cell.workload)
        asked = min(suite.rounds, own.rounds) if own and own.rounds else suite.rounds
        # `--rounds` and `--until-clear` go beyond that, and leave no gap either.
        missing = sorted({*range(1, max(min(asked, MOST_ROUNDS), *found[cell_id]) + 1)} - found[cell_id])
        if missing:
            detail = f"{cell_id} lacks {', '.join(map(str, missing[:10]))} of {asked}"
            yield folder.finding("rounds", "a cell lacks rounds of its suite", detail)


def _missing_cells(folder: SuiteFolder, suite: Suite) -> Iterator[Finding]:
    """Points of the suite that have no record at all, not even of why they are skipped."""
    found: dict[str, set[int]] = defaultdict(set)
    spread: set[str] = set()
    for cell in (trial.record.cell for trial in folder.trials):
        point = Point(cell.stack, cell.model, cell.workload, cell.seq_len, cell.paired_batch, cell.option_axes)
        found[canonical_json(point)].add(cell.world_size)
        spread |= {cell.stack} if cell.world_size > 1 else set()
    for point in islice(points_of(suite), _MOST_POINTS):
        sizes = found[canonical_json(point)]
        # Which stacks spread over ranks is the techniques' to know: those that were measured on several do.
        asked = set(axes_of(suite, point.workload)["world_size"]) if point.stack in spread else sizes
        if not sizes or not sizes >= asked:
            words = [point.model, point.workload, f"seq_len {point.seq_len}", f"batch_size {point.batch_size}"]
            words += [f"{axis} {value}" for axis, value in point.options.items()]
            words += [f"world_size {size}" for size in sorted(asked - sizes)]
            yield folder.finding("missing-cells", f"stack {point.stack} has cells without any record", ", ".join(words))


def _baselines(folder: SuiteFolder, baseline: str) -> Iterator[Finding]:
    """Whether each good trial has something to be compared with: a ratio is taken within a round of a session."""
    bases: dict[str, set[tuple[int, str]]] = defaultdict(set)
    turns: dict[tuple[str, int], list[Trial]] = defaultdict(list)
    for trial in folder.trials:
        record = trial.record
        if record.cell.stack == baseline:
            bases[_comparison(record.cell)] |= {(record.round, record.session)} if record.status == "ok" else set()
        elif record.status == "ok":
            turns[record.cell_id, record.round].append(trial)
    for trials in turns.values():
        first, found = trials[0], bases.get(_comparison(trials[0].record.cell))
        if found is None:
            yield first.finding("baseline", f"there is no record of the baseline {baseline} to compare with")
        elif not any((trial.record.round, trial.record.session) in found for trial in trials):
            what = f"no good trial of the baseline {baseline} in the same round and session: a ratio is lost"
            yield first.finding("unpaired", what, f"round {first.record.round}, session {first.record.session}")


def _comparison(cell: Cell) -> str:
    """What a cell and its baseline's share; the world size is not of it, for a baseline that nothing spreads has but one."""
    return canonical_json([cell.model, cell.workload, cell.seq_len, cell.paired_batch, cell.dtype])
