"""What the harness counted: parameters, bytes on disk, durations of set-up."""

from collections.abc import Mapping
from typing import ClassVar

from effbench.plugin import Meter, Metric, Observation, Summary


class Size(Meter):
    """Exact counts: parameters, bytes of what would be stored, and how long each preparation took, once."""

    name: ClassVar = "size"
    metrics: ClassVar = (
        Metric("parameters.trainable", "", "lower", "Parameters that the optimizer updates."),
        Metric("parameters.total", "", "lower", "All parameters after `apply`, shared ones once."),
        Metric("checkpoint.bytes", "B", "lower", "safetensors files of the model as inference uses it."),
        Metric("checkpoint.sparse_bytes", "B", "lower", "The same with zeros left out, at a bit per element where less."),
        Metric("checkpoint.bits_per_weight", "bit", "lower", "Bits of the same files / weights of the untouched model."),
        Metric("checkpoint.delta_bytes", "B", "lower", "Tensors that training changed or made: what to ship beside the base."),
        Metric("load.duration_s", "s", "lower", "Loading the model.", "max"),
        Metric("apply.duration_s", "s", "lower", "Applying the stack before training.", "max"),
        Metric("train.teacher_s", "s", "lower", "Making a teacher ready for the stack to learn from: loading, tuning.", "max"),
        Metric("infer.convert_s", "s", "lower", "Merging and converting after training.", "max"),
    )

    def end(self, observation: Observation) -> Mapping[str, Summary]:
        """Figures the harness counted in this phase."""
        units = {metric.name: metric.unit for metric in self.metrics}
        return {name: Summary(median=value, unit=units[name]) for name, value in observation.facts.items() if name in units}
