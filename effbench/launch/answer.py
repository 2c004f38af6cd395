"""How a trial ended on each rank, and what that comes to as one answer."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

_HOW: dict[str, Callable[[list[float]], float]] = {"max": max, "sum": sum}


@dataclass
class RankAnswer:
    """How one trial ended on one rank, as the worker told it."""

    outcome: dict[str, Any] | None = None
    phase: str | None = None
    """The last phase that the trial announced."""
    ended: dict[str, Any] = field(default_factory=dict)
    """reason (of the worker, where it ended the trial), exit, signal; empty while the trial runs."""
    log: str = ""

    @property
    def failed(self) -> bool:
        """Whether this rank can no longer take its part in the trial."""
        if self.outcome is not None:
            return bool(self.outcome["status"] != "ok")
        return bool(self.ended)


@dataclass
class Answer(RankAnswer):
    """How one trial ended on all of its ranks: the failing rank's own words, or rank 0's outcome with every rank's metrics."""

    timed_out: bool = False
    rank: int | None = None
    """Which of several ranks failed."""


def joined(ranks: Mapping[int, RankAnswer], across_ranks: Mapping[str, str], *, timed_out: bool = False) -> Answer:
    """One answer of all ranks'. `across_ranks` says by metric how several values become one: first, max or sum."""
    first = ranks[0]
    if timed_out:
        return Answer(None, first.phase, first.ended, _all_logs(ranks), timed_out=True)
    failing = _failing(ranks)
    if failing is not None:
        answer = ranks[failing]
        return Answer(answer.outcome, answer.phase, answer.ended, answer.log, rank=failing if len(ranks) > 1 else None)
    outcome = first.outcome
    if outcome is not None and len(ranks) > 1:
        metrics = _merged([a.outcome["metrics"] for _, a in sorted(ranks.items()) if a.outcome], across_ranks)
        outcome = outcome | {"metrics": metrics}
    return Answer(outcome, first.phase, first.ended, first.log)


def _all_logs(ranks: Mapping[int, RankAnswer]) -> str:
    """What every rank printed, and where it stood when it was ended: a reader sees which one the others waited for."""
    if len(ranks) == 1:
        return ranks[0].log
    return "\n".join(f"rank {rank}:\n{answer.log.strip()}" for rank, answer in sorted(ranks.items()))


def _failing(ranks: Mapping[int, RankAnswer]) -> int | None:
    """The rank whose failure is the cause: one that died by itself comes before one that only lost its connection to it."""
    failed = {rank: answer for rank, answer in sorted(ranks.items()) if answer.failed}
    return min(failed, key=lambda rank: _distance_from_cause(failed[rank]), default=None)


def _distance_from_cause(answer: RankAnswer) -> int:
    reason = answer.ended.get("reason")
    if answer.outcome is None:
        return 3 if reason in ("another rank failed", "timeout") else 0  # ended by us, or died
    return 2 if _lost_a_peer(answer.outcome["error"] or "") else 1


def _lost_a_peer(error: str) -> bool:
    """Whether an error says that another rank is gone: gloo and NCCL say it in these words."""
    return any(words in error for words in ("Connection closed by peer", "Connection reset by peer", "DistBackendError"))


def _merged(metrics: Iterable[dict[str, Any]], across_ranks: Mapping[str, str]) -> dict[str, Any]:
    ranks = list(metrics)
    found = {}
    for name, summary in ranks[0].items():
        values = [of_rank[name]["median"] for of_rank in ranks if name in of_rank]
        how = across_ranks.get(name, "first")
        if how == "first":
            found[name] = summary
        elif len(values) == len(ranks):  # a sum or a maximum over some of the ranks would be a wrong figure
            found[name] = summary | {"median": _HOW[how](values)}
    return found
