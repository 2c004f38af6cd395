"""How many weights are not zero."""

from collections.abc import Mapping
from typing import ClassVar

from effbench.plugin import Meter, Metric, Observation, Summary


class Density(Meter):
    """Counted where it matters, after everything that might have filled zeros again; absent where weights were converted."""

    name: ClassVar = "density"
    metrics: ClassVar = (
        Metric("weights.density", "", "lower", "Share of the linear layers' weights, no head, that is not zero."),
    )

    def end(self, observation: Observation) -> Mapping[str, Summary]:
        """Count what is left once inference has been measured."""
        if observation.phase != "infer" or observation.model is None:
            return {}
        from effbench.plugin.layers import linear_layers

        weights = [layer.weight.detach() for layer in linear_layers(observation.model).values()]
        if not weights:
            return {}
        left = sum(int(weight.count_nonzero()) for weight in weights)
        return {"weights.density": Summary(median=left / sum(weight.numel() for weight in weights), unit="")}
