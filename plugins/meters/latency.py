"""Durations, as the harness sampled them."""

from collections.abc import Mapping
from typing import ClassVar

from effbench.plugin import Meter, Metric, Observation, Summary
from effbench.plugin.sampling import summarize


class Latency(Meter):
    """Durations of training steps, prefill and decoding: medians after warm-up, of the slowest rank in each sample."""

    name: ClassVar = "latency"
    metrics: ClassVar = (
        Metric("train.step_s", "s", "lower", "One optimisation step: forward, backward, update; no data loading."),
        Metric("infer.prefill_s", "s", "lower", "Time to first token: the whole prompt batch once, or a forward pass."),
        Metric("infer.decode_token_s", "s", "lower", "Time per output token after the first: decode loop / (new tokens - 1)."),
        Metric("infer.end_to_end_s", "s", "lower", "Prefill plus the whole decode loop."),
    )

    def end(self, observation: Observation) -> Mapping[str, Summary]:
        """Medians over the samples of the phase."""
        found = {}
        for name, metric, scale in (
            ("step", "train.step_s", 1),
            ("prefill", "infer.prefill_s", 1),
            ("decode", "infer.decode_token_s", observation.decode_steps),
            ("end_to_end", "infer.end_to_end_s", 1),
        ):
            if samples := observation.samples.get(name):
                found[metric] = summarize(samples, "s", scale=scale, stopped=observation.stopped.get(name))
        return found
