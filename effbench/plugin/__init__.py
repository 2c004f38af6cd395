"""What a plugin author imports: `from effbench.plugin import Technique, hookimpl`. Nothing here imports torch."""

from effbench.hookspecs import hookimpl
from effbench.plugin.cell import Cell, ModelFacts, Sampling
from effbench.plugin.errors import InputError
from effbench.plugin.launcher import ArrayLauncher, Element, ElementState, Launcher, Submission, WorkerProcess
from effbench.plugin.meter import Meter, Metric, Observation, Summary
from effbench.plugin.model import LoadRequest, ModelSource
from effbench.plugin.reporter import Reporter, TextReporter
from effbench.plugin.technique import Context, Inference, Technique, TrainStep
from effbench.plugin.workload import Quality, Workload

__all__ = [
    "ArrayLauncher",
    "Cell",
    "Context",
    "Element",
    "ElementState",
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
    "Submission",
    "Summary",
    "Technique",
    "TextReporter",
    "TrainStep",
    "WorkerProcess",
    "Workload",
    "hookimpl",
]
