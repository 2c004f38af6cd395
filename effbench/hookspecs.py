"""The six hooks a plugin may implement. Each is given `register`, a function that takes one object."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from effbench.plugin.launcher import AnyLauncher
    from effbench.plugin.meter import Meter
    from effbench.plugin.model import ModelSource
    from effbench.plugin.reporter import Reporter
    from effbench.plugin.technique import Technique
    from effbench.plugin.workload import Workload

hookspec = pluggy.HookspecMarker("effbench")
hookimpl = pluggy.HookimplMarker("effbench")


@hookspec
def register_techniques(register: "Callable[[type[Technique]], None]") -> None:
    """Register classes of techniques."""


@hookspec
def register_models(register: "Callable[[type[ModelSource]], None]") -> None:
    """Register sources of models."""


@hookspec
def register_workloads(register: "Callable[[type[Workload]], None]") -> None:
    """Register workloads."""


@hookspec
def register_meters(register: "Callable[[type[Meter]], None]") -> None:
    """Register meters."""


@hookspec
def register_launchers(register: "Callable[[type[AnyLauncher]], None]") -> None:
    """Register ways to start workers, or to hand whole runs to a cluster."""


@hookspec
def register_reporters(register: "Callable[[type[Reporter]], None]") -> None:
    """Register output formats of leaderboards."""
