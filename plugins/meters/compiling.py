"""Time spent compiling."""

import sys
from collections.abc import Mapping
from typing import ClassVar

from effbench.plugin import Meter, Metric, Observation, Summary


class Compiling(Meter):
    """Seconds in torch.compile, Dynamo and its backend together, as Dynamo counts them; absent where nothing was compiled.

    A function compiles when it is first called, which for inference may be while quality is evaluated: so a phase's figure
    runs from the end of the phase before it. The samples in which it happened are warm-up or outliers of the latency.
    """

    name: ClassVar = "compile"
    metrics: ClassVar = (
        Metric("train.compile_s", "s", "lower", "Compiling, from loading to the end of training.", "max"),
        Metric("infer.compile_s", "s", "lower", "Compiling after training: conversion, evaluation, prefill and decode.", "max"),
    )
    _before: float = 0.0

    def end(self, observation: Observation) -> Mapping[str, Summary]:
        """What was compiled since the last of these phases ended."""
        if observation.phase not in ("train", "infer"):
            return {}
        now = _seconds()
        spent, self._before = now - self._before, now
        return {f"{observation.phase}.compile_s": Summary(median=spent, unit="s")} if spent > 0 else {}


def _seconds() -> float:
    dynamo = sys.modules.get("torch._dynamo.utils")  # not imported: nothing was compiled, and importing it takes seconds
    return float(dynamo.calculate_time_spent()["total_wall_time"]) if dynamo else 0.0
