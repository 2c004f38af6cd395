"""Slurm: each element of a run is an element of a job array, submitted through submitit."""

import re
from collections.abc import Callable, Sequence
from math import ceil
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, field_validator

from effbench.plugin import ArrayLauncher, Element, Submission, hookimpl
from effbench.plugin.launcher import AnyLauncher

_OWN_OPTIONS = ("partition", "nodes", "gpus-per-node", "cpus-per-task", "time")
_SET_HERE = ("array", "chdir", "error", "job-name", "ntasks", "ntasks-per-node", "open-mode", "output", "signal", "wrap")
_ASKED: dict[str, str | bool] = {
    "exclusive": True,  # who shares a machine is disturbed, and elements of one run would disturb each other
    "requeue": True,
}
_WARNING_S = 30
"""How long before its time limit an element is told to make way."""


class Slurm(ArrayLauncher):
    """A Slurm cluster, through submitit: one array element is one round of one world size."""

    name: ClassVar = "slurm"

    partition: str | None = Field(default=None, description="Slurm's own default unless named")
    nodes: int = Field(default=1, ge=1, description="machines that the ranks of a world size above 1 are spread over")
    gpus_per_node: int | None = Field(
        default=None, ge=1, description="GPUs on each; without any, cells are measured on the CPU"
    )
    cpus_per_task: int | None = Field(
        default=None, ge=1, description="cores on each machine; as many as the largest cell's threads by default"
    )
    time: float = Field(default=3600, ge=60, description="limit of an element, in seconds")
    slurm: dict[str, str | bool] = Field(default={}, description="other long options of sbatch; False for none")

    @field_validator("slurm")
    @classmethod
    def _not_ours(cls, options: dict[str, str | bool]) -> dict[str, str | bool]:
        for name in options:
            if not re.fullmatch("[a-z][a-z0-9-]*", name):
                raise ValueError(f"{name!r} is not the name of a long option of sbatch")
            if name in _OWN_OPTIONS:
                raise ValueError(f"{name} has an option of its own: --{name}")
            if name in _SET_HERE:
                raise ValueError(f"{name} is set by effbench itself")
        return options

    @property
    def device(self) -> str:
        """CUDA where GPUs are asked for."""
        return "cuda" if self.gpus_per_node else "cpu"

    def unsupported(self, world_size: int) -> str | None:
        """Ranks are spread evenly, each on a GPU of its own where there are any; a single one runs on one machine."""
        if world_size > 1 and world_size % self.nodes:
            return f"world_size {world_size} cannot be spread evenly over {self.nodes} nodes"
        each = self.ranks_per_node(world_size)
        if self.gpus_per_node and each > self.gpus_per_node:
            return (
                f"world_size {world_size} needs {each} GPUs on each of {self.nodes} nodes, gpus_per_node = {self.gpus_per_node}"
            )
        return None

    def nodes_for(self, world_size: int) -> int:
        """Machines that an element gets."""
        return 1 if world_size == 1 else self.nodes

    def ranks_per_node(self, world_size: int) -> int:
        """Ranks on each of them."""
        return world_size // self.nodes_for(world_size)

    def submit(self, elements: Sequence[Element], title: str, folder: Path, cores: int) -> Submission:
        """Submit one array, or two: elements of a single rank need one machine, whatever the others need."""
        from .submission import submit

        groups: dict[int, list[Element]] = {}
        for element in elements:
            groups.setdefault(self.nodes_for(element.world_size), []).append(element)
        arrays = [(self._parameters(nodes, cores), group) for nodes, group in groups.items()]
        return submit(arrays, title, folder)

    def _parameters(self, nodes: int, cores: int) -> dict[str, Any]:
        """submitit's; the same for every element but for the nodes, so that all of them run on the same kind of machine."""
        cpus = self.cpus_per_task or ceil(cores / self.nodes)
        return {
            "partition": self.partition,
            "nodes": nodes,
            "gpus_per_node": self.gpus_per_node,
            "ntasks_per_node": 1,
            "cpus_per_task": cpus,
            "time": ceil(self.time / 60),
            "signal_delay_s": _WARNING_S,
            "additional_parameters": {name: value for name, value in (_ASKED | self.slurm).items() if value is not False},
            # One process on the first machine, which may use every core of the allocation, and does the rest.
            "srun_args": ["--nodes=1", "--ntasks=1", f"--cpus-per-task={cpus}", "--cpu-bind=none"],
        }


@hookimpl
def register_launchers(register: "Callable[[type[AnyLauncher]], None]") -> None:
    """Register the cluster."""
    register(Slurm)
