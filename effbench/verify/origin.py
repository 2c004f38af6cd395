"""Which code made a record, and whether it is one of a kind."""

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from itertools import chain
from typing import TypeVar

from effbench.plugin.catalog import Catalog
from effbench.store.record import METHODOLOGY, Record
from effbench.verify.action import actions
from effbench.verify.finding import Finding
from effbench.verify.read import SuiteFolder, Trial

Key = TypeVar("Key", bound=Hashable)

_TELLING = 5
"""So many different durations in one list are never measured twice: each has a clock's noise in at least two digits."""


def check_origin(folder: SuiteFolder, catalog: Catalog) -> Iterator[Finding]:
    """Git state and fingerprints of one folder."""
    present = _present_hashes(folder, catalog)
    for trial in folder.trials:
        yield from _git(trial)
        yield from _fingerprint(trial)
        for name, found in trial.record.fingerprint.techniques.items():
            if found != present.get(name, found):
                what = f"made by other code of {name} than is installed here"
                yield trial.finding("other-code", what, f"{found}, here {present[name]}")
    yield from _mixed(folder)


def check_copies(folders: Sequence[SuiteFolder]) -> Iterator[Finding]:
    """Trials that are the same one, in all folders: what is copied is copied from anywhere."""
    trials = [trial for folder in folders for trial in folder.trials]
    seen: dict[tuple[str, str, int, str], Trial] = {}
    lists: dict[tuple[float, ...], Trial] = {}
    figures: dict[tuple[float, float], Trial] = {}
    for trial in trials:
        record = trial.record
        same = _first(trial, seen, [(record.machine, record.cell_id, record.round, record.session)])
        raw, measured = _first(trial, lists, _raw(trial)), _first(trial, figures, _measured(record))
        if same:
            yield trial.finding("duplicate", "a second record of the same cell, round and session", f"the first is {same.name}")
        elif raw:
            yield trial.finding("copied", "the raw samples are those of another trial", f"as in {raw.name}")
        elif measured:
            yield trial.finding("copied", "measured figures equal another trial's to nine digits", f"as in {measured.name}")


def _first(trial: Trial, known: dict[Key, Trial], keys: Iterable[Key]) -> Trial | None:
    """The first trial that has one of these keys too; remembers this one."""
    others = [known.setdefault(key, trial) for key in keys]
    return next((other for other in others if other is not trial), None)


def _raw(trial: Trial) -> Iterator[tuple[float, ...]]:
    """The durations of each action, and of all together, whatever their order."""
    found = [trial.sidecar.samples.get(action.samples, []) for action in actions(trial.record)] if trial.sidecar else []
    for samples in (*found, list(chain(*found))):
        if len(set(samples)) >= _TELLING:
            yield tuple(sorted(samples))


def _measured(record: Record) -> Iterator[tuple[float, float]]:
    """(median time, throughput) of each timed action.

    Counts and bytes are equal by nature, and one duration may be by chance, for a clock's steps are finite. A median and a
    rate, which is of the mean, are not both: with steps of 1 ns and a noise of 0.1 ms, once in 10¹⁰ pairs of trials or less.
    """
    for action in actions(record):
        time, rate = record.metrics.get(action.time), record.metrics.get(action.rate or "")
        if time and rate and time.n >= _TELLING:
            yield time.median, rate.median


def _present_hashes(folder: SuiteFolder, catalog: Catalog) -> dict[str, str]:
    """Of the techniques that are installed here."""
    names = {name for trial in folder.trials for name in trial.record.fingerprint.techniques}
    return {name: catalog.technique_hash(name) for name in names.intersection(catalog.techniques.names())}


def _git(trial: Trial) -> Iterator[Finding]:
    state = trial.record.git
    if not state:
        yield trial.finding("git", "no commit is named: nobody can look up the code")
    elif state.endswith("+dirty"):
        yield trial.finding("git", "made with changes that are in no commit", state)


def _fingerprint(trial: Trial) -> Iterator[Finding]:
    record, found = trial.record, trial.record.fingerprint
    names = {name for name, _ in record.cell.techniques}
    absent = [f"hash of {name}" for name in sorted(names ^ found.techniques.keys())]
    absent += [name for name in ("weights", "data") if not getattr(found, name)]
    if record.status == "ok":
        absent += [f"version of {name}" for name in ("torch", "transformers") if found.versions.get(name, "absent") == "absent"]
        absent += [f"plugin of {name}" for name in sorted(names - record.plugins.keys())]
    if absent:
        yield trial.finding("fingerprint", "the fingerprint does not say all that made the record", ", ".join(absent))
    if found.methodology != METHODOLOGY:
        detail = f"{found.methodology}, the present is {METHODOLOGY}"
        yield trial.finding("methodology", "measured by another methodology: boards keep it apart", detail)


def _mixed(folder: SuiteFolder) -> Iterator[Finding]:
    """What should be one and the same in a folder, and is not: a part of the records is of older code."""
    values: dict[str, Counter[str]] = defaultdict(Counter)
    for record in (trial.record for trial in folder.trials):
        for name, value in _facets(record):
            values[name][value] += 1
    for name, counts in values.items():
        if len(counts) > 1:
            detail = ", ".join(f"{count} of {value}" for value, count in counts.most_common())
            yield folder.finding("mixed-code", f"records of one suite differ in their {name}", detail)


def _facets(record: Record) -> Iterator[tuple[str, str]]:
    found = record.fingerprint
    yield from ((f"code of {name}", value) for name, value in found.techniques.items())
    yield from ((f"version of {name}", value) for name, value in found.versions.items())
    yield f"weights of {record.cell.model}", found.weights
    yield f"data of {record.cell.workload}", found.data
