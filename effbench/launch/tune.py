"""Learning rates chosen on the validation split: a sweep of short trials per stack, none of which leaves a record."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import mean

from effbench.launch.orchestrate import findings
from effbench.launch.requests import Sources, start_message, trial_request
from effbench.launch.worker import Worker
from effbench.plan.plan import Plan
from effbench.plugin.catalog import Catalog
from effbench.plugin.cell import Cell
from effbench.plugin.launcher import Launcher
from effbench.plugin.workload import higher_is_better

CANDIDATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
"""Where a sweep begins; it goes on beyond an end that turns out best."""
_FURTHER = 4
"""Steps beyond the candidates at most: what is still best at the end of it is best at any rate."""
_ROUND = 0  # of the seeds: no round of a run has these


@dataclass(frozen=True)
class Sweep:
    """What each learning rate of one stack came to."""

    cell: Cell
    metric: str
    seeds: Sequence[int]
    scores: dict[float, float]
    """By learning rate, ascending: the mean over seeds on validation; nan where one of them did not end well."""
    errors: dict[float, str]
    """Of these, what was said."""

    @property
    def best(self) -> float | None:
        """The learning rate with the best score; None where none has one."""
        return best_of(self.scores, self.metric)


def sweeps(  # noqa: PLR0913, PLR0917 - a plan with its catalog and sources, and what to try
    plan: Plan,
    catalog: Catalog,
    sources: Sources,
    launcher: Launcher,
    cells: Sequence[Cell],
    candidates: Sequence[float],
    seeds: int,
    on_trial: Callable[[Cell, float], None],
) -> Iterator[Sweep]:
    """Sweep each cell's learning rate over the candidates, or over `CANDIDATES` and beyond where none are given."""
    workers: dict[int, Worker] = {}
    try:
        for cell in cells:
            if cell.world_size not in workers:
                alike = [c for c in cells if c.world_size == cell.world_size]
                workers[cell.world_size] = Worker(launcher, cell.world_size, start_message(plan, catalog, sources, alike))
            yield _sweep(plan, workers[cell.world_size], cell, candidates, seeds, on_trial)
    finally:
        for worker in workers.values():
            worker.close()
        launcher.close()


def _sweep(  # noqa: PLR0913, PLR0917 - see `sweeps`
    plan: Plan, worker: Worker, cell: Cell, candidates: Sequence[float], seeds: int, on_trial: Callable[[Cell, float], None]
) -> Sweep:
    metric = plan.suite.quality.metric
    numbers = [trial_request(plan, cell, _ROUND)["seed"] + number for number in range(seeds)]
    scores: dict[float, float] = {}
    errors: dict[float, str] = {}
    waiting = sorted(candidates or CANDIDATES)
    while waiting:
        lr = waiting.pop(0)
        on_trial(cell, lr)
        try:
            scores[lr] = mean(_score(plan, worker, cell, lr, seed, metric) for seed in numbers)
        except _FailedError as error:
            scores[lr], errors[lr] = math.nan, str(error)
        if not waiting and not candidates and len(scores) < len(CANDIDATES) + _FURTHER:
            waiting = beyond(scores, metric)
    return Sweep(cell, metric, numbers, dict(sorted(scores.items())), errors)


class _FailedError(Exception):
    """A trial of the sweep did not end well."""


def _score(  # noqa: PLR0913, PLR0917 - one trial
    plan: Plan, worker: Worker, cell: Cell, lr: float, seed: int, metric: str
) -> float:
    tried = cell.model_copy(update={"lr": lr}).model_dump(mode="json")
    request = trial_request(plan, cell, _ROUND) | {"cell": tried, "seed": seed, "split": "validation"}
    timeout_s = plan.suite.limits.timeout_s
    found, _ = findings(worker.run(request, timeout_s, lambda phase: None), timeout_s)
    if found["status"] != "ok":
        said = (found["error"] or "").strip().splitlines() or [""]
        raise _FailedError(f"{found['status']}: {said[-1]}")
    scores = (found["quality"] or {}).get("scores", {})
    if metric not in scores:
        raise _FailedError(found["quality_absent"] or f"the workload has no score {metric!r}; it has {', '.join(scores)}")
    return float(scores[metric])


def best_of(scores: dict[float, float], metric: str) -> float | None:
    """The learning rate of the best score; the smaller one where two are equal."""
    sign = -1 if higher_is_better(metric) else 1
    finite = {lr: sign * score for lr, score in sorted(scores.items()) if math.isfinite(score)}
    return min(finite, key=lambda lr: finite[lr], default=None)


def beyond(scores: dict[float, float], metric: str) -> list[float]:
    """The next learning rate past the end of the grid that is best, or below a grid on which all diverged."""
    best = best_of(scores, metric)
    if best is None or best == min(scores):
        return [_neighbour(min(scores), -1)]
    return [_neighbour(best, +1)] if best == max(scores) else []


def _neighbour(lr: float, direction: int) -> float:
    """The grid is 1, 3, 10, 30, … times a power of ten."""
    exponent = math.floor(math.log10(lr) + 1e-9)
    leads = lr / 10**exponent > 2  # a 3
    if direction > 0:
        return float(f"1e{exponent + 1}") if leads else float(f"3e{exponent}")
    return float(f"1e{exponent}") if leads else float(f"3e{exponent - 1}")
