"""The standard meters: time, throughput, memory, parameters, size."""

import ctypes
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar

from effbench.plugin import Meter, Metric, Observation, Summary, hookimpl
from effbench.plugin.sampling import summarize, warmup_length


class Latency(Meter):
    """Durations of training steps, prefill and decoding, as sampled by the harness."""

    name: ClassVar = "latency"
    metrics: ClassVar = (
        Metric("train.step_s", "s", "lower", "One optimisation step: forward, backward, update; no data loading."),
        Metric("infer.prefill_s", "s", "lower", "Time to first token: the whole prompt batch once."),
        Metric("infer.decode_token_s", "s", "lower", "Time per output token after the first: decode loop / (new tokens - 1)."),
        Metric("infer.end_to_end_s", "s", "lower", "Prefill plus the whole decode loop."),
    )

    def end(self, observation: Observation) -> Mapping[str, Summary]:
        """Medians over the samples of the phase."""
        found = {}
        for name, metric, scale in (
            ("step", "train.step_s", 1),
            ("prefill", "infer.prefill_s", 1),
            ("decode", "infer.decode_token_s", observation.cell.new_tokens - 1),
            ("end_to_end", "infer.end_to_end_s", 1),
        ):
            if samples := observation.samples.get(name):
                found[metric] = summarize(samples, "s", scale=scale, stopped=observation.stopped.get(name))
        return found


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
            ("decode", "infer.decode_tokens_per_s", cell.new_tokens - 1),
        ):
            if samples := observation.samples.get(name):
                kept = samples[warmup_length(samples) :]
                rate = cell.batch_size * tokens / fmean(kept)
                found[metric] = Summary(median=rate, n=len(kept), unit="tokens/s", stopped=observation.stopped.get(name))
        return found


class Memory(Meter):
    """Peak memory of a phase.

    CUDA: the allocator's peak. CPU: VmHWM after a reset, less what was resident when the phase began, plus the bytes of the
    live model, because a warm fork starts with hundreds of megabytes of libraries that belong to no technique.
    """

    name: ClassVar = "memory"
    metrics: ClassVar = (
        Metric("train.peak_memory_bytes", "B", "lower", "Peak while training steps ran, the model included."),
        Metric("infer.peak_memory_bytes", "B", "lower", "Peak while prefill and decode ran, the model included."),
    )
    _end: "Callable[[], int | None] | None" = None

    def begin(self, observation: Observation) -> None:
        """Reset the peak."""
        self._end = None
        if observation.phase in ("train", "infer") and observation.model is not None:
            begin = _cuda_peak if observation.cell.device == "cuda" else _resident_peak
            self._end = begin(_model_bytes(observation.model))

    def end(self, observation: Observation) -> Mapping[str, Summary]:
        """The peak since `begin`; absent where the system does not tell."""
        peak = self._end() if self._end else None
        return {} if peak is None else {f"{observation.phase}.peak_memory_bytes": Summary(median=peak, unit="B")}


class Size(Meter):
    """Exact counts: parameters, and bytes of what would be stored."""

    name: ClassVar = "size"
    metrics: ClassVar = (
        Metric("parameters.trainable", "", "lower", "Parameters that the optimizer updates."),
        Metric("parameters.total", "", "lower", "All parameters after `apply`, shared ones once."),
        Metric("checkpoint.bytes", "B", "lower", "safetensors files of the model as inference uses it."),
        Metric("checkpoint.delta_bytes", "B", "lower", "The trained tensors that are not in the base: what to ship beside it."),
        Metric("load.duration_s", "s", "lower", "Loading the model."),
        Metric("apply.duration_s", "s", "lower", "Applying the stack before training."),
        Metric("infer.convert_s", "s", "lower", "Merging and converting after training."),
    )

    def end(self, observation: Observation) -> Mapping[str, Summary]:
        """Figures the harness counted in this phase."""
        units = {metric.name: metric.unit for metric in self.metrics}
        return {name: Summary(median=value, unit=units[name]) for name, value in observation.facts.items() if name in units}


def _model_bytes(model: Any) -> int:
    """Bytes of every tensor of the model, shared ones once; quantized layers keep theirs in packed parameters."""
    tensors: dict[int, int] = {}

    def add(value: Any) -> None:
        if isinstance(value, tuple):
            for part in value:
                add(part)
        elif hasattr(value, "element_size"):
            where = id(value) if value.is_quantized else value.data_ptr()
            tensors[where] = value.numel() * value.element_size()

    for value in [*model.state_dict(keep_vars=True).values(), *model.buffers()]:
        add(value)
    return sum(tensors.values())


def _cuda_peak(model_bytes: int) -> "Callable[[], int | None]":
    import torch

    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.max_memory_allocated


def _resident_peak(model_bytes: int) -> "Callable[[], int | None]":
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        return lambda: None
    _release_free_memory()  # or a peak would hide in what earlier phases freed and the allocator kept
    reset.write_text("5")
    start = _status_bytes("VmRSS")
    return lambda: _status_bytes("VmHWM") - start + model_bytes


def _release_free_memory() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone
    if trim is not None:
        trim(0)


def _status_bytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


@hookimpl
def register_meters(register: "Callable[[type[Meter]], None]") -> None:
    """Register the standard meters."""
    for meter in (Latency, Throughput, Memory, Size):
        register(meter)
