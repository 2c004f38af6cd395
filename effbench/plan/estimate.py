"""A rough guess of a plan's time and memory, before anything is run."""

from collections.abc import Mapping
from dataclasses import dataclass

from effbench.plan.plan import Plan
from effbench.plugin.cell import Cell

_FLOPS_PER_S = {"cpu": 15e9, "cuda": 100e12}  # one thread of a current server core in float32; one data-centre GPU
_FIXED_S = 0.3  # per trial: fork, load, store
_QUALITY_BYTES = 1000  # of a typical evaluation document


@dataclass(frozen=True)
class Estimate:
    """Of all trials together, and of the largest one."""

    minutes: float
    memory_gb: float
    seconds: Mapping[str, float]
    """Of one trial, by cell id."""


def estimate(plan: Plan, rounds: int, seconds_seen: Mapping[str, float]) -> Estimate:
    """Seconds of earlier trials where known (by cell id), otherwise FLOPs over a stated rate.

    A token costs 2·N FLOPs forward and 6·N in training (Kaplan et al. 2020, section 2.1), N being the weights.
    """
    seconds: dict[str, float] = {}
    for cell in plan.cells:
        name = cell.id
        seconds[name] = seconds_seen.get(name) or _seconds(cell, plan.phase_skips.get(name, {}))
    total = sum(plan.rounds(cell, rounds) * seconds[cell.id] for cell in plan.cells)
    return Estimate(minutes=total / 60, memory_gb=plan.memory / 2**30, seconds=seconds)


def _seconds(cell: Cell, phase_skips: Mapping[str, str]) -> float:
    rate = _FLOPS_PER_S[cell.device] * (cell.threads if cell.device == "cpu" else 1)
    per_token = 2 * cell.facts.approximate_parameters
    batch = cell.batch_size * cell.seq_len
    quality = cell.quality_documents * _QUALITY_BYTES * per_token / rate
    total = _FIXED_S
    if "train" not in phase_skips:
        total += 3 * per_token * batch * cell.steps / rate + quality
    if "infer" not in phase_skips:
        once = per_token * (batch + cell.batch_size * cell.decode_steps) / rate
        floor = max(cell.sampling.min_seconds, cell.sampling.min_samples * once)
        total += quality + min(2 * floor, cell.sampling.max_seconds * 2 + once)
    return total
