"""What a record says of its trial, looked at by itself: phases, metrics, units, summaries, conditions, quality."""

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from effbench.launch.conditions import dirty_reason
from effbench.plugin.catalog import Catalog
from effbench.plugin.meter import Metric, Summary
from effbench.verify.action import actions
from effbench.verify.finding import Finding
from effbench.verify.read import SuiteFolder, Trial

_COUNTED = {"apply": ("parameters.total",), "train": ("parameters.trainable",), "infer": ("checkpoint.bytes",)}
"""By phase, what it always counts."""
_PEAKS = {phase: f"{phase}.peak_memory_bytes" for phase in ("train", "infer")}
_NEVER_NEGATIVE = frozenset({"s", "tokens/s", "B", "FLOP", "J", "bit", "steps", "share"})


@dataclass(frozen=True)
class Known:
    """The metrics that plugins here define, and the meters they belong to."""

    metrics: Mapping[str, Metric]
    meters: Mapping[str, Collection[str]]

    @classmethod
    def of(cls, catalog: Catalog) -> "Known":
        """What a catalog knows."""
        return cls(catalog.metrics(), {meter.name: {metric.name for metric in meter.metrics} for meter in catalog.meters})

    def measured(self, metric: str, chosen: Collection[str] | None) -> bool:
        """Whether a suite that chose these meters (None: all) measures the metric."""
        return any(metric in metrics for meter, metrics in self.meters.items() if chosen is None or meter in chosen)


def check_statement(trial: Trial, folder: SuiteFolder, known: Known) -> Iterator[Finding]:
    """Everything that one record can be asked without its raw samples."""
    if trial.record.status == "ok":
        yield from _phases(trial)
        yield from _required(trial, folder.suite.meters if folder.suite else None, known)
        yield from _quality(trial)
        yield from _conditions(trial, folder)
    elif not trial.record.error:
        yield trial.finding("phases", "a trial that did not end well gives no reason", trial.record.status)
    positive = {"parameters.trainable", *_PEAKS.values()}
    positive |= {name for action in actions(trial.record) for name in (action.time, action.rate) if name}
    for name, summary in trial.record.metrics.items():
        yield from _summary(trial, name, summary, positive=name in positive)
        yield from _unit(trial, name, summary, known)


def _phases(trial: Trial) -> Iterator[Finding]:
    record = trial.record
    for phase in ("load", "apply", *record.cell.phases):
        how = record.phases.get(phase, "missing")
        left_out = phase in record.cell.phases and how.startswith("skipped: ")
        if how != "ok" and not left_out:
            yield trial.finding("phases", f"a trial is ok and its phase {phase} is not, nor skipped for a reason", how)


def _required(trial: Trial, chosen: Collection[str] | None, known: Known) -> Iterator[Finding]:
    record = trial.record
    done = [phase for phase, how in record.phases.items() if how == "ok"]
    wanted = [name for phase in done for name in _COUNTED.get(phase, ())]
    wanted += [name for action in actions(record) for name in (action.time, action.rate) if name]
    for name in wanted:
        if name not in record.metrics and known.measured(name, chosen):
            yield trial.finding("metrics", f"{name} is missing though its phase is ok")
    for name in (peak for phase, peak in _PEAKS.items() if phase in done):
        if name not in record.metrics and known.measured(name, chosen):
            yield trial.finding("no-memory", f"{name} is missing: this system does not tell")


def _quality(trial: Trial) -> Iterator[Finding]:
    record = trial.record
    if record.phases.get("infer") == "ok" and not (record.quality and record.quality.scores) and not record.quality_absent:
        yield trial.finding("no-quality", "inference was timed, and there is neither quality nor a reason why not")


def _conditions(trial: Trial, folder: SuiteFolder) -> Iterator[Finding]:
    record, found = trial.record, trial.record.conditions
    if found is None:
        yield trial.finding("no-conditions", "nothing is said of what else the machine did")
        return
    # The machine is watched from before the trial until after it.
    if not 0 < record.wall_s <= 1.01 * found.seconds + 0.1:
        detail = f"{found.seconds:g} s, the trial took {record.wall_s:g} s"
        yield trial.finding("conditions", "the machine was not watched for the whole trial", detail)
        return
    wanted, cores = record.cell.threads * record.cell.world_size, folder.machine.cores if folder.machine else found.cores
    if (found.wanted, found.cores) != (wanted, cores):
        detail = f"{found.wanted} of {found.cores}, expected {wanted} of {cores}"
        yield trial.finding("conditions", "threads and cores are not those of the cell and the machine", detail)
    if not record.dirty and (reason := dirty_reason(found)):
        yield trial.finding("conditions", "a trial is disturbed by its own conditions, and not marked dirty", reason)


def _summary(trial: Trial, name: str, summary: Summary, *, positive: bool) -> Iterator[Finding]:
    low, high = summary.low, summary.high
    values = [value for value in (low, summary.median, high) if value is not None]
    shown = f"{low} ≤ {summary.median} ≤ {high}, n = {summary.n}"
    if not all(map(math.isfinite, values)):
        yield trial.finding("summary", f"{name} is not a number", shown)
    elif values != sorted(values):
        yield trial.finding("summary", f"{name} lies outside of its own interval", shown)
    elif summary.n < 1:
        yield trial.finding("summary", f"{name} is of no samples", shown)
    elif (positive and values[0] <= 0) or (values[0] < 0 and summary.unit in _NEVER_NEGATIVE):
        yield trial.finding("summary", f"{name} is too small to be one", shown)


def _unit(trial: Trial, name: str, summary: Summary, known: Known) -> Iterator[Finding]:
    metric = known.metrics.get(name)
    if metric is None:
        yield trial.finding("unknown-metric", f"{name} is a metric of no plugin that is installed here")
    elif summary.unit != metric.unit:
        yield trial.finding("unit", f"{name} has another unit", f"{summary.unit!r}, expected {metric.unit!r}")
    elif metric.name.endswith("mfu") and summary.median > 1:
        yield trial.finding("mfu", f"{name}: more operations than the machine's measured peak allows", f"{summary.median:g}")
