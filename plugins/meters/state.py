"""What a model, its optimizer and its cache weigh in memory."""

from collections.abc import Mapping
from typing import Any, ClassVar

from effbench.plugin import Meter, Metric, Observation, Summary


class State(Meter):
    """Bytes of the tensors that live through a phase, exact; with several ranks, of the rank that holds most."""

    name: ClassVar = "state"
    metrics: ClassVar = (
        Metric("train.model_bytes", "B", "lower", "Weights and buffers as they are trained.", "max"),
        Metric("train.optimizer_state_bytes", "B", "lower", "The optimizer's state after the last step.", "max"),
        Metric("infer.model_bytes", "B", "lower", "Weights and buffers as inference uses them, quantized ones packed.", "max"),
        Metric("infer.kv_cache_bytes", "B", "lower", "The cache after a prefill and its whole decode loop.", "max"),
    )

    def end(self, observation: Observation) -> Mapping[str, Summary]:
        """Count what is there when the phase has ended; what a stack does not have is absent."""
        from .tensors import model_bytes, stored_bytes

        held: dict[str, int] = {}
        if observation.phase == "train" and observation.step is not None:
            optimizer: Any = observation.step.optimizer
            held["train.model_bytes"] = model_bytes(observation.step.model)
            held["train.optimizer_state_bytes"] = stored_bytes(getattr(optimizer, "state", None))
        if observation.phase == "infer" and observation.inference is not None:
            held["infer.model_bytes"] = model_bytes(observation.inference.model)
            held["infer.kv_cache_bytes"] = stored_bytes(observation.cache)
        return {name: Summary(median=value, unit="B") for name, value in held.items() if value}
