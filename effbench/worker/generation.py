"""Prefill and decoding, sampled in turn."""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from effbench.plugin.meter import Observation
from effbench.plugin.sampling import Sampler
from effbench.plugin.technique import Inference

T = TypeVar("T")


class Timed(Protocol):
    """How the harness times an action."""

    def __call__(self, action: Callable[[], T], /) -> tuple[float, T]:
        """Seconds of the slowest rank, and this rank's result."""


class Generation:
    """A prompt's prefill, and the greedy decode loop behind it; `steps` is 0 where nothing decodes."""

    def __init__(self, inference: Inference, ids: Tensor, steps: int) -> None:
        self._inference, self._ids, self._steps = inference, ids, steps
        self._mask = torch.ones_like(ids)

    def run(self) -> None:
        """Once, untimed."""
        self._decode(*self._prefill())

    def sample(self, observation: Observation, timed: Timed) -> None:
        """Prefill and decode loop in turn, each timed by itself, until both are known well enough."""
        prefills, decodes = Sampler(observation.cell.sampling), Sampler(observation.cell.sampling)
        samplers = [prefills, decodes] if self._steps else [prefills]
        reason = None
        while reason is None:
            seconds, (logits, cache) = timed(self._prefill)
            prefills.add(seconds)
            if self._steps:
                seconds, observation.cache = timed(partial(self._decode, logits, cache))
                decodes.add(seconds)
            # Every rank sees the same durations, so all stop after the same sample.
            reasons = [sampler.enough() for sampler in samplers]
            reason = "cap" if "cap" in reasons else "interval" if all(reasons) else None
        observation.samples["prefill"] = prefills.samples
        observation.stopped = dict.fromkeys(("prefill", "decode", "end_to_end"), reason)
        if self._steps:
            observation.samples["decode"] = decodes.samples
            observation.samples["end_to_end"] = [p + d for p, d in zip(prefills.samples, decodes.samples, strict=True)]

    def _prefill(self) -> tuple[Tensor, Any]:
        return self._inference.prefill(self._inference, self._ids, self._mask)

    def _decode(self, logits: Tensor, cache: Any) -> Any:
        for _ in range(self._steps):
            logits, cache = self._inference.decode(self._inference, logits.argmax(-1, keepdim=True), cache)
        return cache
