"""How much ranks exchange in a step, and how much of its time that takes beside and beyond computing."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter, thread_time
from typing import TYPE_CHECKING, Any, ClassVar

from effbench.plugin import Meter, Metric, Observation, Summary

if TYPE_CHECKING:
    from torch.autograd.profiler_util import FunctionEvent

    from effbench.plugin import TrainStep
    from effbench.plugin.technique import Batch

Interval = tuple[float, float]

_STEP = "effbench.step"
_WHOLE = "effbench.step of all ranks"
_SCHEDSTAT = Path("/proc/thread-self/schedstat")
_PASSES = 4  # the first is given up: ranks enter it at different times
_WAITS = frozenset({"c10d", "_c10d_functional", "autograd", "profiler", "FSDP"})
"""Namespaces of operators that start or await communication, or are not operators at all."""


class Communication(Meter):
    """What ranks exchange, in a few more passes after the timed steps; several ranks only.

    Bytes are payload: those of the tensors that a rank hands to collectives and sends, in one whole step with its update, added
    up over ranks. An algorithm moves more or less of them: a ring's all-reduce of N ranks has each send 2 (N - 1) / N of its
    payload. Absent where an operator is not known.

    Shares come from a profile of forward and backward passes without the update. In flight is the time from the start to the
    end of a collective or a message (`gloo:…` on the CPU, NCCL's kernels on CUDA), where several overlap counted once. It is
    exposed while this rank runs no other operator (CPU) or kernel (CUDA).

    A rank is idle while its thread sleeps (CPU; waiting for a core is not idling) or no kernel but NCCL's runs (CUDA),
    from the start of a pass, which all ranks begin together, until the last one has ended it. In a pipeline that is the bubble
    with what its messages and unequal stages add.
    """

    name: ClassVar = "communication"
    metrics: ClassVar = (
        Metric(
            "train.communication_bytes", "B", "lower", "Bytes given to collectives and sends in a step, by all ranks.", "sum"
        ),
        Metric("train.communication_share", "share", "lower", "Share of a pass with a collective in flight.", "max"),
        Metric("train.exposed_communication_share", "share", "lower", "The part of it in which nothing is computed.", "max"),
        Metric(
            "train.idle_share",
            "share",
            "lower",
            "Share of a pass in which a rank waits (the bubble), mean over ranks.",
            "sum",
        ),
    )

    def probe(self, observation: Observation) -> Mapping[str, Summary]:
        """Count one step, profile a few passes, and time a few more."""
        step, batch = observation.step, observation.batch
        if observation.phase != "train" or observation.cell.world_size == 1 or step is None or batch is None:
            return {}
        from .again import unchanged

        cuda, ranks = observation.cell.device == "cuda", observation.cell.world_size
        count = _bytes(step, batch)
        found = {} if count is None else {"train.communication_bytes": Summary(median=count, unit="B")}
        with unchanged(step.model):
            events = _profiled(step, batch, cuda=cuda)
            idle = idle_share(events) if cuda else median(_waited(step, batch) for _ in range(_PASSES))
        names = ("train.communication_share", "train.exposed_communication_share")
        values = {**dict(zip(names, shares(events, cuda=cuda), strict=False)), "train.idle_share": idle / ranks}
        return found | {name: Summary(median=value, unit="share") for name, value in values.items()}


def _bytes(step: "TrainStep", batch: "Batch") -> int | None:
    """What this rank hands over in one step; None where that cannot be known."""
    from .again import unchanged
    from .exchanged import Exchanged

    with unchanged(step.model, updated=True), Exchanged() as exchanged:
        step.run(batch)
    return None if exchanged.unknown else exchanged.total


def _profiled(step: "TrainStep", batch: "Batch", *, cuda: bool) -> "Sequence[FunctionEvent]":
    """A few passes, each marked from the time when all ranks begin it until the last one ends."""
    from torch.distributed import barrier
    from torch.profiler import ProfilerActivity, profile, record_function

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as profiler:
        for _ in range(_PASSES):
            barrier()
            with record_function(_WHOLE):
                with record_function(_STEP):
                    step.forward_backward(step, batch)
                    if cuda:
                        _synchronise()
                barrier()
    return list(profiler.events())


def _waited(step: "TrainStep", batch: "Batch") -> float:
    """The share of one pass, until the last rank has ended it, in which this thread has nothing to run."""
    from torch.distributed import barrier

    barrier()
    start, busy = perf_counter(), _busy_seconds()
    step.forward_backward(step, batch)
    busy = _busy_seconds() - busy
    barrier()
    return max(0.0, 1 - busy / (perf_counter() - start))


def _busy_seconds() -> float:
    """How long this thread has run, or been ready without a core: the second figure of schedstat, which only Linux has."""
    try:
        ready = int(_SCHEDSTAT.read_text().split()[1]) / 1e9
    except FileNotFoundError:
        ready = 0.0
    return thread_time() + ready


def idle_share(events: "Iterable[FunctionEvent]") -> float:
    """On CUDA: median over the passes but the first, until the last rank has ended each."""
    events = list(events)
    busy = merged(_interval(e) for e in events if _computes(e, 0, cuda=True))
    marks = sorted(_interval(e) for e in events if e.name == _WHOLE and not _on_device(e))
    return median(1 - _length(_overlaps([mark], busy)) / _length([mark]) for mark in marks[1:])


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
