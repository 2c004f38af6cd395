"""Floating-point operations, and how near the device's own peak they ran."""

from collections.abc import Callable, Mapping
from functools import cache
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar

from effbench.plugin import Cell, Meter, Metric, Observation, Summary
from effbench.plugin.sampling import warmup_length
from effbench.store.calibration import matmul_key, read_calibration

if TYPE_CHECKING:
    from effbench.worker.counting import FlopCounter


class Flops(Meter):
    """Operations of matrix products (a multiply-add is two), counted while one more pass runs after the timed ones.

    Forward and backward of a step, without its update; a prefill; one decode step behind the prompt. What is run is counted,
    recomputation by checkpointing included; attention counts as dense. Absent where an operator is not known (a custom kernel,
    FlexAttention); a kernel that is launched past PyTorch, such as raw Triton, goes unseen.

    MFU is the share of the mean time that these operations would take at the peak that `effbench calibrate` measured on this
    machine, for the number types and threads they ran with. It is absent without a calibration: a peak measured in each trial
    would cost time there, and every trial would be divided by another figure.
    """

    name: ClassVar = "flops"
    metrics: ClassVar = (
        Metric("train.step_flops", "FLOP", "lower", "Matrix products of one forward and backward pass, over all ranks.", "sum"),
        Metric("infer.prefill_flops", "FLOP", "lower", "Matrix products of one prefill, over all ranks.", "sum"),
        Metric("infer.decode_token_flops", "FLOP", "lower", "Matrix products of the first decode step, over all ranks.", "sum"),
        Metric("train.mfu", "share", "higher", "Time for a step's products at the measured peak / mean time.", "sum"),
        Metric(
            "infer.prefill_mfu", "share", "higher", "Time for a prefill's products at the measured peak / mean time.", "sum"
        ),
    )

    def probe(self, observation: Observation) -> Mapping[str, Summary]:
        """Count one more pass of each kind."""
        counts = {}
        if observation.phase == "train":
            counts = {"train.step": _count(lambda: _forward_backward(observation))}
        elif observation.phase == "infer":
            counts = _count_inference(observation)
        found = {f"{name}_flops": Summary(median=c.total, unit="FLOP") for name, c in counts.items() if c}
        for name, count, sample in (("train.mfu", "train.step", "step"), ("infer.prefill_mfu", "infer.prefill", "prefill")):
            counter, samples = counts.get(count), observation.samples.get(sample)
            if counter and samples and (seconds := seconds_at_peak(observation.cell, counter.by_dtype)):
                mean = fmean(samples[warmup_length(samples) :])
                found[name] = Summary(median=seconds / mean / observation.cell.world_size, unit="share")
        return found


def seconds_at_peak(cell: Cell, flops_by_dtype: Mapping[str, int]) -> float | None:
    """How long these operations take at this machine's measured peak; None where it was not measured for one of the types."""
    peaks = _measured_peaks()
    rates = {dtype: peaks.get(matmul_key(cell.device, dtype, cell.threads)) for dtype in flops_by_dtype}
    seconds = [flops_by_dtype[dtype] / rate for dtype, rate in rates.items() if rate]
    return sum(seconds) if len(seconds) == len(rates) else None


@cache
def _measured_peaks() -> Mapping[str, float]:
    """FLOP/s by "device dtype threads", as `effbench calibrate` left them for this machine; empty where it never ran."""
    calibration = read_calibration()
    return calibration.matmul_flops_per_s if calibration else {}


def _forward_backward(observation: Observation) -> None:
    from .again import unchanged

    step, batch = observation.step, observation.batch
    if step is not None and batch is not None:
        with unchanged(step.model):
            step.forward_backward(step, batch)


def _count_inference(observation: Observation) -> dict[str, "FlopCounter | None"]:
    import torch

    from .again import unchanged

    inference, prompt = observation.inference, observation.prompt
    if inference is None or prompt is None:
        return {}
    last: list[Any] = []

    def prefill() -> None:
        last[:] = inference.prefill(inference, prompt, torch.ones_like(prompt))

    def decode() -> None:
        logits, cache = last
        inference.decode(inference, logits.argmax(-1, keepdim=True), cache)

    with torch.inference_mode(), unchanged(inference.model):
        counts = {"infer.prefill": _count(prefill)}
        if observation.decode_steps and last:
            counts["infer.decode_token"] = _count(decode)
    return counts


def _count(action: Callable[[], None]) -> "FlopCounter | None":
    """What the action multiplies; None where that cannot be known."""
    from effbench.worker.counting import UncountableError, counting

    try:
        with counting() as counter:
            action()
    except UncountableError:
        return None
    return counter if counter.total and not counter.unknown else None
