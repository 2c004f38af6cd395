"""A trial under torch.profiler: traces for TensorBoard, and time by operator. Its times are never records."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar

import torch
from torch.profiler import ProfilerActivity, profile, schedule, tensorboard_trace_handler

from effbench.plugin.meter import Meter, Metric, Observation, Summary
from effbench.store.profile import Part, PartProfile, write_profile
from effbench.worker.operators import by_operator

_WARMUP = 1
_RECORDED = 3
STEPS = _WARMUP + _RECORDED
"""What each part runs under the profiler: a long trace shows nothing more, and TensorBoard reads it slowly."""


class Profiler(Meter):
    """Runs the step, the prefill and the decoding again under the profiler, once the trial has run them as always.

    It is alone in its trial: unlike other meters, it leaves the model trained further, for nothing is made of that model.
    """

    name: ClassVar = "profiler"
    metrics: ClassVar[tuple[Metric, ...]] = ()

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def probe(self, observation: Observation) -> Mapping[str, Summary]:
        """Record the parts of this phase into folders named after them."""
        if observation.phase == "train":
            self._train(observation)
        elif observation.phase == "infer":
            with torch.inference_mode():
                self._infer(observation)
        return {}

    def _train(self, observation: Observation) -> None:
        step, batch = observation.step, observation.batch
        if step is not None and batch is not None:
            self._record("train", observation, lambda: step.run(batch), STEPS)

    def _infer(self, observation: Observation) -> None:
        inference, prompt = observation.inference, observation.prompt
        if inference is None or prompt is None:
            return
        mask = torch.ones_like(prompt)
        self._record("prefill", observation, lambda: inference.prefill(inference, prompt, mask), STEPS)
        if not observation.decode_steps:
            return
        logits, cache = inference.prefill(inference, prompt, mask)

        def decode() -> None:
            nonlocal logits, cache
            logits, cache = inference.decode(inference, logits.argmax(-1, keepdim=True), cache)

        self._record("decode", observation, decode, min(STEPS, observation.decode_steps))

    def _record(self, part: Part, observation: Observation, action: Callable[[], object], steps: int) -> None:
        folder, rank, device = self._folder / part, observation.rank, observation.cell.device
        folder.mkdir(parents=True, exist_ok=True)
        warmup = min(_WARMUP, steps - 1)
        export = tensorboard_trace_handler(str(folder), f"rank{rank}", use_gzip=True)

        def save(recorded: profile) -> None:
            export(recorded)
            count = steps - warmup
            operators = by_operator(recorded.events(), device, count)
            write_profile(PartProfile(part=part, rank=rank, device=device, steps=count, operators=operators), folder)

        with profile(
            activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])],
            schedule=schedule(wait=0, warmup=warmup, active=steps - warmup, repeat=1),
            on_trace_ready=save,
            record_shapes=True,
            profile_memory=True,
        ) as profiler:
            for _ in range(steps):
                action()
                profiler.step()
