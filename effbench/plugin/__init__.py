"""What a plugin author imports: `from effbench.plugin import Technique, hookimpl`. Nothing here imports torch."""

from effbench.hookspecs import hookimpl
from effbench.plugin.cell import Cell, ModelFacts, Sampling
from effbench.plugin.errors import InputError
from effbench.plugin.launcher import Launcher, WorkerProcess
from effbench.plugin.meter import Meter, Metric, Observation, Summary
from effbench.plugin.model import LoadRequest, ModelSource
from effbench.plugin.reporter import Reporter
from effbench.plugin.technique import Context, Inference, Technique, TrainStep
from effbench.plugin.workload import Quality, Workload

__all__ = [
    "Cell",
    "Context",
    "Inference",
    "InputError",
    "Launcher",
    "LoadRequest",
    "Meter",
    "Metric",
    "ModelFacts",
    "ModelSource",
    "Observation",
    "Quality",
    "Reporter",
    "Sampling",
    "Summary",
    "Technique",
    "TrainStep",
    "WorkerProcess",
    "Workload",
    "hookimpl",
]
