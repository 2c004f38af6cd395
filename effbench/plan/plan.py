"""A suite's cells, what is skipped, and why; all without torch."""

import itertools
import json
import platform
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

from effbench.plan.memory import predict
from effbench.plan.reasons import PHASES, why_no_cell, why_no_phases
from effbench.plan.suite import PLAIN_AXES, ForWorkload, Suite, Use
from effbench.plugin.catalog import Catalog
from effbench.plugin.cell import Cell, ModelFacts
from effbench.plugin.errors import InputError, unknown
from effbench.plugin.mesh import degrees
from effbench.plugin.technique import Technique
from effbench.store.machine import gpus

_DEFAULT_AXES: dict[str, list[Any]] = {"seq_len": [128], "batch_size": [1], "world_size": [1]}


@dataclass(frozen=True)
class Skip:
    """A cell that cannot be measured here."""

    cell: Cell
    reason: str


@dataclass(frozen=True)
class Plan:
    """What a suite comes to on this machine."""

    suite: Suite
    cells: list[Cell]
    skips: list[Skip]
    phase_skips: dict[str, dict[str, str]]
    """cell id → phase → reason, for cells of which only a part is measured."""
    models: dict[str, str] = field(default_factory=dict)
    """Label in cells and records → reference in the suite, which may hold a path."""
    workloads: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """What the suite's axes might suggest, but no cell exists for."""
    memory: float = 0.0
    """Bytes of all ranks that the largest cell is predicted to need, of those whose techniques say what they take."""

    def rounds(self, cell: Cell, asked: int) -> int:
        """How many rounds there are of this cell, where so many are asked for: its workload may have fewer."""
        own = self.suite.for_workload.get(self.workloads.get(cell.workload, ""))
        return min(asked, own.rounds) if own and own.rounds else asked

    def labelled_suite(self) -> Suite:
        """The suite with labels in place of references, which may hold paths: so it may stand beside records."""
        label_of = {reference: label for label, reference in self.models.items()}
        own: dict[str, ForWorkload] = {}
        for label, reference in self.workloads.items():
            if found := self.suite.for_workload.get(reference):
                models = found.models and [label_of[model] for model in found.models]
                own[label] = found.model_copy(update={"models": models})
        names = {"models": list(self.models), "workloads": list(self.workloads)}
        return self.suite.model_copy(update=names | {"for_workload": own})

    def skip_reasons(self) -> list[tuple[str, int]]:
        """Each reason for skipping, and how many cells it took."""
        return Counter(f"{skip.cell.stack}: {skip.reason}" for skip in self.skips).most_common()


def plan(suite: Suite, catalog: Catalog, only_stacks: Sequence[str] = ()) -> Plan:
    """Expand stacks × models × workloads × axes. InputError for whatever the suite names that does not exist."""
    _check_names(suite, catalog, only_stacks)
    _check_allocator(suite)
    models, facts = _labelled_models(suite, catalog)
    workload_objects = {ref: catalog.workload(ref) for ref in suite.workloads}
    workloads = _labelled({ref: workload.label for ref, workload in workload_objects.items()}, "workload")
    validator = _Validator(catalog)
    cells, skips, phase_skips, largest = [], [], {}, 0.0
    single = {name for name, stack in suite.stacks.items() if not any(map(_dimension(catalog), stack.use))}
    device: Literal["cpu", "cuda"] = "cpu"
    if suite.device == "cuda" or (suite.device == "auto" and gpus()):
        device = "cuda"
    for cell in _expand(suite, models, facts, workloads, device, only_stacks, single):
        techniques = validator.techniques(cell)
        cell = _spread(cell, techniques)  # noqa: PLW2901 - the same cell, now with its share of the batch
        workload = workload_objects[workloads[cell.workload]]
        if reason := why_no_cell(cell, techniques) or workload.unsupported(cell):
            skips.append(Skip(cell, reason))
            continue
        reasons = why_no_phases(cell, techniques, workload.phases)
        needs = predict(cell, techniques, [p for p in PHASES if p not in reasons], suite.limits.memory_gb)
        reasons |= needs.reasons()
        if reasons.keys() >= set(PHASES):
            asked = [f"no {phase}: {reason}" for phase, reason in reasons.items() if phase in cell.phases]
            skips.append(Skip(cell, "; ".join(asked)))
            continue
        cells.append(cell)
        largest = max(largest, *(cell.world_size * need for phase, need in needs.needed.items() if phase not in reasons), 0.0)
        if reasons:
            phase_skips[cell.id] = reasons
    return Plan(suite, cells, skips, phase_skips, models, workloads, list(_single_rank_notes(suite, single)), largest)


def techniques_of(cell: Cell, catalog: Catalog) -> list[Technique]:
    """The cell's stack as validated techniques, in the suite's order."""
    return [catalog.technique(name, options) for name, options in cell.techniques]


class _Validator:
    """Validates options once per combination: a plan of thousands of cells has few of them."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._techniques: dict[str, Technique] = {}

    def techniques(self, cell: Cell) -> list[Technique]:
        found = []
        for name, options in cell.techniques:
            key = f"{name} {json.dumps(options, sort_keys=True, default=str)}"
            if key not in self._techniques:
                self._techniques[key] = self._catalog.technique(name, options)
            found.append(self._techniques[key])
        return found


def _check_allocator(suite: Suite) -> None:
    if suite.allocator != "default" and platform.libc_ver()[0] != "glibc":
        name = f'allocator = "{suite.allocator}"'
        raise InputError(f'{name} is a setting of glibc\'s malloc, which this system does not have; use "default"')


def _check_names(suite: Suite, catalog: Catalog, only_stacks: Sequence[str]) -> None:
    for name in only_stacks:
        if name not in suite.stacks:
            raise unknown("stack", name, suite.stacks)
    for name in suite.meters or ():
        catalog.meters.get(name)
    metrics = catalog.metrics()
    claimed = (claim.metric for claim in suite.claims if not claim.metric.startswith("quality."))
    for metric in (suite.ranking.by, *suite.columns, *claimed):
        if metric not in metrics:
            raise unknown("metric", metric, metrics)
    for stack in suite.stacks.values():
        for use in stack.use:
            catalog.techniques.get(use.technique)
    _check_option_axes(suite, catalog)
    firsts = {axis: values[0] for axis, values in suite.axes.items()}
    for use in (use for stack in suite.stacks.values() for use in stack.use):
        catalog.technique(use.technique, merged(use, firsts))  # an axis may give an option that has no default


def _check_option_axes(suite: Suite, catalog: Catalog) -> None:
    used = {use.technique for stack in suite.stacks.values() for use in stack.use}
    for axis in suite.axes:
        name, dot, option = axis.partition(".")
        if dot:
            fields = catalog.techniques.get(name).model_fields
            if option not in fields:
                raise unknown(f"option of technique {name!r}", option, fields)
            if name not in used:
                raise InputError(f"axis {axis!r}: no stack uses technique {name!r}; add it to a stack or drop the axis")


def _labelled_models(suite: Suite, catalog: Catalog) -> tuple[dict[str, str], dict[str, ModelFacts]]:
    sources = {ref: catalog.model(ref, trust_remote_code=suite.trust_remote_code) for ref in suite.models}
    models = _labelled({ref: source.label for ref, source in sources.items()}, "model")
    return models, {label: sources[ref].facts() for label, ref in models.items()}


def _labelled(labels: dict[str, str], kind: str) -> dict[str, str]:
    """Reference → label turned round; InputError where two references share a label."""
    references: dict[str, str] = {}
    for reference, label in labels.items():
        if label in references:
            both = f"{references[label]} and {reference}"
            raise InputError(f"{kind}s {both} would both be called {label!r} in records: rename one folder or file")
        references[label] = reference
    return references


def _expand(  # noqa: PLR0913, PLR0917 - what a cell is made of
    suite: Suite,
    models: dict[str, str],
    facts: dict[str, ModelFacts],
    workloads: dict[str, str],
    device: Literal["cpu", "cuda"],
    only_stacks: Sequence[str],
    single: Collection[str],
) -> Iterator[Cell]:
    all_axes = _DEFAULT_AXES | {axis: values for axis, values in suite.axes.items() if axis in PLAIN_AXES}
    for name, stack in suite.stacks.items():
        if only_stacks and name not in (*only_stacks, suite.baseline):
            continue
        axes = all_axes | {"world_size": [1]} if name in single else all_axes
        own = {axis: v for axis, v in suite.axes.items() if axis.partition(".")[0] in {use.technique for use in stack.use}}
        for values in itertools.product(*own.values()):
            options = dict(zip(own, values, strict=True))
            techniques = tuple((use.technique, merged(use, options)) for use in stack.use)
            for model, workload, *point in _points(suite, models, workloads, axes):
                yield Cell(
                    suite=suite.name,
                    stack=name,
                    techniques=techniques,
                    model=model,
                    facts=facts[model],
                    workload=workload,
                    dtype=suite.dtype,
                    device=device,
                    threads=suite.threads,
                    allocator=suite.allocator,
                    scaling=suite.scaling,
                    phases=tuple(suite.phases),
                    steps=_for_workload(suite, workloads[workload]).steps or suite.training.steps,
                    lr=stack.lr or suite.training.lr,
                    new_tokens=suite.inference.new_tokens,
                    quality_documents=suite.quality.documents,
                    sampling=suite.sampling,
                    option_axes=options,
                    **dict(zip(axes, point, strict=True)),
                )


def _points(
    suite: Suite, models: Mapping[str, str], workloads: Mapping[str, str], axes: Mapping[str, list[Any]]
) -> Iterator[tuple[Any, ...]]:
    """(model, workload, value of each axis), where a workload may be for some models and lengths alone."""
    for (model, model_reference), (workload, reference) in itertools.product(models.items(), workloads.items()):
        own = _for_workload(suite, reference)
        if own.models is None or model_reference in own.models:
            yield from itertools.product([model], [workload], *({**axes, **own.axes}).values())


def _for_workload(suite: Suite, reference: str) -> ForWorkload:
    return suite.for_workload.get(reference, ForWorkload())


def merged(use: Use, option_axes: dict[str, Any]) -> dict[str, Any]:
    """A technique's options: those of the stack, with the values of the axes over them."""
    own = {axis.partition(".")[2]: value for axis, value in option_axes.items() if axis.startswith(f"{use.technique}.")}
    return use.options | own


def _spread(cell: Cell, techniques: Sequence[Technique]) -> Cell:
    """The cell with its ranks among the stack's parallel techniques; under weak scaling the batch grows with `dp`."""
    found = list(zip(techniques, degrees(techniques, cell.world_size), strict=True))
    data_ranks = prod(degree for technique, degree in found if technique.dimension == "dp")
    batch = cell.batch_size * data_ranks if cell.scaling == "weak" else cell.batch_size
    parallel = {technique.name: degree for technique, degree in found if technique.dimension}
    return cell.model_copy(update={"data_ranks": data_ranks, "batch_size": batch, "parallel": parallel})


def _dimension(catalog: Catalog) -> Callable[[Use], str | None]:
    return lambda use: catalog.techniques.get(use.technique).dimension


def _single_rank_notes(suite: Suite, single: Collection[str]) -> Iterator[str]:
    """A stack of no parallel technique exists on one rank alone, whatever world sizes the suite asks for."""
    if single and (larger := [size for size in suite.axes.get("world_size", ()) if size > 1]):
        sizes, stacks = ", ".join(map(str, larger)), ", ".join(sorted(single))
        yield f"world_size {sizes}: nothing in {stacks} uses several ranks, measured on one; add ddp"
