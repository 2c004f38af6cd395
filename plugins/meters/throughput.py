"""Tokens per second."""

from collections.abc import Mapping
from statistics import fmean
from typing import ClassVar

from effbench.plugin import Meter, Metric, Observation, Summary
from effbench.plugin.sampling import warmup_length


class Throughput(Meter):
    """Tokens of the global batch per second: volume divided by the mean time, so that rate × time = volume."""

    name: ClassVar = "throughput"
    metrics: ClassVar = (
        Metric("train.tokens_per_s", "tokens/s", "higher", "Batch × sequence length / mean step time, over all ranks."),
        Metric("infer.prefill_tokens_per_s", "tokens/s", "higher", "Batch × prompt length / mean prefill time."),
        Metric("infer.decode_tokens_per_s", "tokens/s", "higher", "Batch × (new tokens - 1) / mean decode-loop time."),
    )

    def end(self, observation: Observation) -> Mapping[str, Summary]:
        """Rates over the samples after warm-up."""
        cell, found = observation.cell, {}
        for name, metric, tokens in (
            ("step", "train.tokens_per_s", cell.seq_len),
            ("prefill", "infer.prefill_tokens_per_s", cell.seq_len),
            ("decode", "infer.decode_tokens_per_s", observation.decode_steps),
        ):
            if samples := observation.samples.get(name):
                kept = samples[warmup_length(samples) :]
                rate = cell.batch_size * tokens / fmean(kept)
                found[metric] = Summary(median=rate, n=len(kept), unit="tokens/s", stopped=observation.stopped.get(name))
        return found
