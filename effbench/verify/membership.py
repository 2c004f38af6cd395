"""Whether a record's cell is one of its suite's, and its seed the round's."""

from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

from effbench.launch.requests import seed_of
from effbench.plan.plan import merged
from effbench.plan.suite import ForWorkload, Suite
from effbench.plugin.cell import Cell, canonical_json
from effbench.verify.finding import Finding
from effbench.verify.read import SuiteFolder, Trial


def check_membership(folder: SuiteFolder) -> Iterator[Finding]:
    """Every record of a folder against its suite.json."""
    if folder.suite:
        for trial in folder.trials:
            yield from _check(trial, folder.suite)


def axes_of(suite: Suite, workload: str) -> dict[str, list[Any]]:
    """The plain axes with the values that this workload has."""
    own = suite.for_workload.get(workload, ForWorkload())
    return {"seq_len": [128], "batch_size": [1], "world_size": [1]} | suite.axes | own.axes


class Point(NamedTuple):
    """Where a suite has a cell, or one for each world size."""

    stack: str
    model: str
    workload: str
    seq_len: int
    batch_size: int
    """The one at which stacks are compared."""
    options: dict[str, Any]
    """Values of the option axes that the stack has."""


def points_of(suite: Suite) -> Iterator[Point]:
    """All of them, without asking techniques and workloads which they support: those have records of being skipped."""
    for stack, workload in product(suite.stacks, suite.workloads):
        axes, own = axes_of(suite, workload), suite.for_workload.get(workload, ForWorkload())
        techniques = {use.technique for use in suite.stacks[stack].use}
        options = {axis: values for axis, values in suite.axes.items() if axis.partition(".")[0] in techniques}
        values = [own.models or suite.models, axes["seq_len"], axes["batch_size"], *options.values()]
        for model, seq_len, batch_size, *chosen in product(*values):
            yield Point(stack, model, workload, seq_len, batch_size, dict(zip(options, chosen, strict=True)))


def _check(trial: Trial, suite: Suite) -> Iterator[Finding]:
    record = trial.record
    for name, have, allowed in _values(record.cell, suite):
        if not any(canonical_json(have) == canonical_json(value) for value in allowed):
            expected = " or ".join(map(canonical_json, allowed)) or "nothing"
            what = f"the cell's {name} is not its suite's"
            yield trial.finding("suite-cell", what, f"{canonical_json(have)}, expected {expected}")
    if record.seed != (seed := seed_of(suite, record.round)):
        yield trial.finding("seed", "the seed is not the suite's for this round", f"{record.seed}, expected {seed}")


def _values(cell: Cell, suite: Suite) -> Iterator[tuple[str, Any, list[Any]]]:
    """(name, value, allowed values) of all that a suite decides of a cell."""
    yield "stack", cell.stack, list(suite.stacks)
    yield "model", cell.model, suite.models
    yield "workload", cell.workload, suite.workloads
    axes = axes_of(suite, cell.workload)
    yield "seq_len", cell.seq_len, axes["seq_len"]
    yield "batch_size", cell.paired_batch, axes["batch_size"]
    yield "world_size", cell.world_size, [1, *axes["world_size"]]
    for axis, value in cell.option_axes.items():
        yield axis, value, suite.axes.get(axis, [])
    own = suite.for_workload.get(cell.workload, ForWorkload())
    for name in ("dtype", "threads", "allocator", "scaling", "phases"):
        yield name, getattr(cell, name), [getattr(suite, name)]
    yield "steps", cell.steps, [own.steps or suite.training.steps]
    yield "new_tokens", cell.new_tokens, [suite.inference.new_tokens]
    yield "quality_documents", cell.quality_documents, [suite.quality.documents]
    yield "sampling", cell.sampling.model_dump(mode="json"), [suite.sampling.model_dump(mode="json")]
    if stack := suite.stacks.get(cell.stack):
        yield "techniques", cell.techniques, [[[use.technique, merged(use, cell.option_axes)] for use in stack.use]]
        yield "lr", cell.lr, [stack.lr or suite.training.lr]
