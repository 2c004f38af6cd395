"""The loss that training ended with."""

from collections.abc import Mapping
from statistics import fmean
from typing import ClassVar

from effbench.plugin import Meter, Metric, Observation, Summary


class Loss(Meter):
    """What was minimised, where it ended: to be compared between stacks that minimise the same on the same batches."""

    name: ClassVar = "loss"
    metrics: ClassVar = (
        Metric("train.final_loss", "", "lower", "Mean loss over the last tenth of the steps, on the batches they trained on."),
    )

    def end(self, observation: Observation) -> Mapping[str, Summary]:
        """The mean of the curve's end."""
        last = observation.losses[-max(1, len(observation.losses) // 10) :]
        return {"train.final_loss": Summary(median=fmean(last), n=len(last), unit="")} if last else {}
