"""Why a cell, or a phase of it, cannot be measured; all without torch. What memory has to say is in `memory.py`."""

from collections.abc import Sequence
from functools import cache
from importlib import metadata
from math import prod
from typing import Literal

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from effbench.plugin.cell import Cell
from effbench.plugin.technique import Technique

PHASES: tuple[Literal["train", "infer"], ...] = ("train", "infer")


def why_no_cell(cell: Cell, techniques: Sequence[Technique]) -> str | None:
    """What is not installed, does not go together, does not divide, or is refused by a technique; None if the cell can be."""
    for distribution in (d for technique in techniques for d in technique.requires):
        if reason := _missing(distribution):
            return reason
    if reason := _conflict(techniques):
        return reason
    if cell.parallel and (ranks := prod(cell.parallel.values())) != cell.world_size:
        return f"the stack's parallel degrees multiply to {ranks}, not to the world size {cell.world_size}"
    if cell.batch_size % cell.data_ranks:
        return f"batch_size {cell.batch_size} cannot be split over {cell.data_ranks} data-parallel ranks"
    if cell.seq_len > cell.facts.context:
        return f"seq_len {cell.seq_len} is beyond the model's context of {cell.facts.context}"
    return next((reason for technique in techniques if (reason := technique.unsupported(cell))), None)


def why_no_phases(cell: Cell, techniques: Sequence[Technique], workload_phases: Sequence[str]) -> dict[str, str]:
    """By phase, why it is skipped while the rest of the cell is measured."""
    reasons: dict[str, str] = {}
    for phase in PHASES:
        if phase not in cell.phases:
            reasons[phase] = "the suite does not ask for it"
        elif phase not in workload_phases:
            reasons[phase] = f"workload {cell.workload} has no {phase} phase"
        elif reason := next((r for t in techniques if (r := t.unsupported_phase(cell, phase))), None):
            reasons[phase] = reason
    if "infer" not in reasons and cell.facts.causal and cell.seq_len + cell.new_tokens > cell.facts.context:
        reasons["infer"] = f"prompt and new tokens pass the model's context of {cell.facts.context}"
    decoding = next((reason for technique in techniques if (reason := technique.unsupported_decoding(cell))), None)
    if decoding and "infer" not in reasons and cell.decode_steps:
        reasons["decode"] = decoding
    return reasons


def _conflict(techniques: Sequence[Technique]) -> str | None:
    """Why these techniques cannot be in one stack, or not in this order."""
    taken: dict[str, str] = {}
    for place, technique in enumerate(techniques):
        dimension = [f"the mesh dimension {technique.dimension}"] if technique.dimension else []
        for setting in (*technique.sets, *dimension):
            if setting in taken:
                return f"{taken[setting]} and {technique.name} both set {setting}: a stack can have one of them"
            taken[setting] = technique.name
        earlier, later = techniques[:place], techniques[place + 1 :]
        if reason := technique.unsupported_after(earlier) or technique.unsupported_before(later):
            return reason
    return None


@cache  # a plan of thousands of cells asks for few distributions
def _missing(distribution: str) -> str | None:
    """The pip line that would add a distribution, or None where it is installed."""
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        for line in metadata.requires("effbench") or ():
            requirement = Requirement(line)
            if (
                canonicalize_name(requirement.name) == canonicalize_name(distribution)
                and requirement.marker
                and "extra ==" in str(requirement.marker)
            ):
                extra = str(requirement.marker).rpartition("extra ==")[2].strip(" \"'")
                if extra != "test":
                    return f"needs {distribution}: pip install 'effbench[{extra}]'"
        return f"needs {distribution}: pip install {distribution}"
    return None
