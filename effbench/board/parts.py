"""Which trials share one table. What must not be compared never does: machines, suites, methodologies, weights, settings."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from effbench.board.settings import settings_of
from effbench.board.view import View, choose, slices

if TYPE_CHECKING:
    import pandas as pd

OLDER = "trials of older code not shown"
_PLACE = ["model", "workload"]
_APART = ["methodology", "device", "weights", "settings"]
"""What else numbers must share to stand in one table; named in the title where there are several of it."""
_WHICH = {"methodology": "methodologies", "device": "devices"}


@dataclass(frozen=True)
class Part:
    """The trials of one board."""

    trials: "pd.DataFrame"
    """A column `place` says which model and workload each is of, where there are several."""
    details: list[str]
    """What its title says besides."""
    slice: dict[str, str]
    """Values of the axes that it is one slice by."""
    notes: list[str]
    together: "pd.DataFrame | None"
    """The trials of all world sizes, on the part of the largest."""

    @property
    def places(self) -> list[str]:
        """Models and workloads that it is an aggregate of; empty of a board of one of each."""
        return sorted(place for place in self.trials["place"].unique() if place)


def parts(current: "pd.DataFrame", older: "pd.DataFrame", given: Mapping[str, Any] | None, view: View) -> "Iterator[Part]":
    """All boards' trials, of those that the view chooses; world sizes stand in tables of their own, one after another."""
    import pandas as pd

    is_baseline = _is_baseline(current, given) if view.where or view.by else pd.Series(True, index=current.index)
    chosen = choose(current, view, is_baseline).assign(place="")
    board = ["machine", "suite", *([] if view.aggregate else _PLACE)]
    older_trials = {ids: len(trials) for ids, trials in older.groupby(board, observed=True).groups.items()}
    for ids, group in chosen.groupby(board, sort=True, observed=True):
        notes = [f"{older_trials[ids]} {OLDER}"] if ids in older_trials else []
        apart = [column for column in _APART if _several(group, column, view.aggregate)]
        several_sizes = group["world_size"].nunique() > 1
        notes += _apart_notes(apart)
        for _, alike in group.groupby(apart or board, sort=True, observed=True):
            named = [str(alike["settings"].iloc[0]) if c == "settings" else f"{c} {alike[c].iloc[0]}" for c in apart]
            for values, whole in slices(alike, view.by, is_baseline):
                missing = _sliced_notes(alike, whole, view.by)
                details = [*named, *(f"{axis} {value}" for axis, value in values.items() if axis not in board)]
                placed = _placed(whole) if view.aggregate else whole
                for world_size, own in _world_sizes(placed, given):
                    size = [f"world_size {world_size}"] if several_sizes else []
                    across = placed if world_size == placed["world_size"].max() else None
                    yield Part(own, list(dict.fromkeys([*details, *size])), values, [*notes, *missing], across)


def _several(group: "pd.DataFrame", column: str, aggregate: bool) -> bool:
    """Whether there is more than one of it. In an aggregate, each model has weights and each workload settings of its own."""
    if aggregate and column in ("weights", "settings"):
        return bool((group.groupby(_PLACE, observed=True)[column].nunique() > 1).any())
    return bool(group[column].nunique() > 1)


def _placed(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Marked with the model and workload, where there are several."""
    place = frame["model"].astype(str) + " on " + frame["workload"].astype(str)
    return frame.assign(place=place) if place.nunique() > 1 else frame


def _world_sizes(whole: "pd.DataFrame", given: Mapping[str, Any] | None) -> "Iterator[tuple[int, pd.DataFrame]]":
    """The trials of each, with the baseline's on a single rank where that is what they are compared with."""
    own = whole[~whole["beside"]] if "beside" in whole else whole
    for world_size, trials in own.groupby("world_size", sort=True):
        size = int(str(world_size))
        yield size, trials if size == 1 else _with_reference(trials, whole, given)


def _with_reference(own: "pd.DataFrame", together: "pd.DataFrame", given: Mapping[str, Any] | None) -> "pd.DataFrame":
    """The trials of a larger world size, and the baseline's at world size 1 where it exists at that alone."""
    import pandas as pd

    baseline = settings_of(own, given)[0].baseline
    if (own["stack"] == baseline).any():
        return own
    reference = together[(together["world_size"] == 1) & (together["stack"] == baseline)]
    return pd.concat([own.assign(reference=False), reference.assign(reference=True)]) if len(reference) else own


def _is_baseline(frame: "pd.DataFrame", given: Mapping[str, Any] | None) -> "pd.Series[bool]":
    """Whether a trial is one of its suite's baseline, or of the untouched model where the suite names none."""
    import pandas as pd

    found = pd.Series(False, index=frame.index)
    for _, own in frame.groupby(["machine", "suite"], observed=True):
        baseline = settings_of(own, given)[0].baseline
        found[own.index] = own["stack"] == baseline if baseline else own["techniques"] == "untouched"
    return found


def _apart_notes(apart: Sequence[str]) -> Iterator[str]:
    if apart:
        yield (
            f"there are trials of several {' and '.join(_WHICH.get(column, column) for column in apart)}: those are never "
            "compared, and stand on boards of their own"
        )


def _sliced_notes(whole: "pd.DataFrame", part: "pd.DataFrame", by: Sequence[str]) -> Iterator[str]:
    """Which stacks are in no slice, because they do not have the axis."""
    for axis in by:
        without = whole.groupby("stack", observed=True)[axis].apply(lambda column: column.isna().all())
        names = [stack for stack in without.index[without] if not (part["stack"] == stack).any()]
        if names and not without.all():
            yield f"{', '.join(f'`{name}`' for name in names)}: no {axis}, and so in no slice by it"
