"""How much of a step is communication, and how much of that is not hidden behind computing."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any, ClassVar

from effbench.plugin import Meter, Metric, Observation, Summary

if TYPE_CHECKING:
    from torch.autograd.profiler_util import FunctionEvent

Interval = tuple[float, float]

_STEP = "effbench.step"
_PASSES = 4  # the first is given up: ranks enter it at different times
_WAITS = frozenset({"c10d", "_c10d_functional", "autograd", "profiler"})
"""Namespaces of operators that start or await communication, or are not operators at all."""


class Communication(Meter):
    """Collectives in a profile of a few more forward and backward passes after the timed steps; several ranks only.

    The update is left out, because it would change the model that is evaluated afterwards; so is what a technique exchanges in
    it. In flight is the time between the start and the end of a collective (`gloo:…` on the CPU, NCCL's kernels on CUDA), where
    several overlap counted once. It is exposed while this rank runs no other operator (CPU) or kernel (CUDA).
    """

    name: ClassVar = "communication"
    metrics: ClassVar = (
        Metric("train.communication_share", "share", "lower", "Share of a pass with a collective in flight.", "max"),
        Metric("train.exposed_communication_share", "share", "lower", "The part of it in which nothing is computed.", "max"),
    )

    def probe(self, observation: Observation) -> Mapping[str, Summary]:
        """Profile a few passes."""
        step, batch = observation.step, observation.batch
        if observation.phase != "train" or observation.cell.world_size == 1 or step is None or batch is None:
            return {}
        from torch.profiler import ProfilerActivity, profile, record_function

        from .again import unchanged

        cuda = observation.cell.device == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
        with unchanged(step.model), profile(activities=activities) as profiler:
            for _ in range(_PASSES):
                with record_function(_STEP):
                    step.forward_backward(step, batch)
                    if cuda:
                        _synchronise()
        names = ("train.communication_share", "train.exposed_communication_share")
        values = shares(profiler.events(), cuda=cuda)
        return {name: Summary(median=value, unit="share") for name, value in zip(names, values, strict=False)}


def shares(events: "Iterable[FunctionEvent]", *, cuda: bool) -> tuple[float, float] | tuple[()]:
    """Medians over the marked passes but the first: share in flight, share exposed. Empty without any collective."""
    events = list(events)
    flying = merged(_interval(e) for e in events if _is_collective(e, cuda=cuda))
    if not flying:
        return ()
    marks = sorted((e for e in events if e.name == _STEP and not _on_device(e)), key=_interval)
    computing = merged(_interval(e) for e in events if _computes(e, marks[0].thread, cuda=cuda))
    both = [_part(_interval(mark), flying, computing) for mark in marks[1:]]
    return median(p[0] for p in both), median(p[1] for p in both)


def merged(intervals: Iterable[Interval]) -> list[Interval]:
    """Their union, in order and apart."""
    union: list[Interval] = []
    for start, end in sorted(intervals):
        if union and start <= union[-1][1]:
            union[-1] = (union[-1][0], max(end, union[-1][1]))
        else:
            union.append((start, end))
    return union


def _part(mark: Interval, flying: Sequence[Interval], computing: Sequence[Interval]) -> tuple[float, float]:
    inside = _overlaps([mark], flying)
    hidden = _length(_overlaps(inside, computing))
    whole = mark[1] - mark[0]
    return _length(inside) / whole, (_length(inside) - hidden) / whole


def _overlaps(some: Sequence[Interval], others: Sequence[Interval]) -> list[Interval]:
    """Where both are; each is in order and apart."""
    found, i, j = [], 0, 0
    while i < len(some) and j < len(others):
        start, end = max(some[i][0], others[j][0]), min(some[i][1], others[j][1])
        if start < end:
            found.append((start, end))
        i, j = (i + 1, j) if some[i][1] < others[j][1] else (i, j + 1)
    return found


def _length(intervals: Iterable[Interval]) -> float:
    return sum(end - start for start, end in intervals)


def _interval(event: Any) -> Interval:
    return event.time_range.start, event.time_range.end


def _on_device(event: Any) -> bool:
    return str(event.device_type) != "DeviceType.CPU"


def _is_collective(event: Any, *, cuda: bool) -> bool:
    return _on_device(event) and "nccl" in event.name.lower() if cuda else event.name.startswith("gloo:")


def _computes(event: Any, thread: int, *, cuda: bool) -> bool:
    if cuda:
        return _on_device(event) and "nccl" not in event.name.lower() and not event.is_user_annotation
    # gloo's own threads copy and add as part of the collective; what this rank computes runs on the thread of the step.
    namespace, separator, _ = event.name.partition("::")
    return bool(separator) and namespace not in _WAITS and event.thread == thread


def _synchronise() -> None:
    import torch

    torch.cuda.synchronize()
