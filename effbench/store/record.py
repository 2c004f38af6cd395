"""The record of one trial, versioned. `json_schema()` is the documented form."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from effbench.plugin.cell import Cell
from effbench.plugin.meter import Summary

METHODOLOGY = "2"
"""Changes when numbers of before and after must not be compared."""

Status = Literal["ok", "skipped", "oom", "timeout", "crashed", "failed", "diverged"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class QualityScores(_Strict):
    """Quality of the object that was timed, and before training where there was any."""

    scores: dict[str, float]
    before: dict[str, float] = {}
    chance: dict[str, float] = {}
    """What the best constant prediction scores, chosen on the training split; empty where the workload does not know."""
    teacher: dict[str, float] = {}
    """Of the model that the stack learns from, where it has one."""
    n: int
    """Documents."""


class Conditions(_Strict):
    """What else the machine did while a trial ran. What cannot be read on a machine is absent."""

    seconds: float
    """Over which the figures are taken: the trial, door to door."""
    cores: int
    """That may be used here."""
    wanted: int
    """Threads of all ranks together."""
    other_cpu: float | None = None
    """Cores' worth of CPU time that other programs used on these cores, on average."""
    steal: float | None = None
    """Share of the CPU time wanted on these cores (at least one core's) that the machine's host gave to others."""
    throttled: float | None = None
    """Share of the time in which a control group's CPU quota held the trial back."""
    load: float | None = None
    """Load average of the last minute, after the trial."""
    gpu_throttled: float | None = None
    """Share of the time in which heat or the hardware slowed a GPU down; of the worst one."""
    gpu_clock_mhz: int | None = None
    """Of the multiprocessors of the first GPU that the trial used, after it."""
    gpu_foreign: int | None = None
    """Processes on the trial's GPUs before it began: effbench's own hold none then."""


class Fingerprint(_Strict):
    """Everything that makes a record current."""

    methodology: str = METHODOLOGY
    techniques: dict[str, str]
    """Hash of each technique's source."""
    weights: str
    data: str
    versions: dict[str, str]
    """Of torch, transformers and what the stack requires."""


class Record(_Strict):
    """One trial: one cell in one round."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    cell_id: str
    cell: Cell
    round: int
    session: str
    seed: int
    status: Status
    error: str | None = None
    """For every status but ok: the reason, or the traceback."""
    failing_rank: int | None = None
    """Of several ranks, the one that the error is of."""
    conditions: Conditions | None = None
    dirty: str | None = None
    """What else on the machine disturbed the trial (docs/measuring.md has the rule); boards leave its timings out."""
    attempt: int = 1
    """Which try this is: a disturbed trial is repeated."""
    phases: dict[str, str] = {}
    """ok, or `skipped: reason`, by phase."""
    metrics: dict[str, Summary] = {}
    quality: QualityScores | None = None
    quality_absent: str | None = None
    """Why there is no quality."""
    leaks: str | None = None
    """How the stack lets a causal model see later tokens; boards show such a row, and do not rank it."""
    final_loss: float | None = None
    wall_s: float
    """Door to door, as the orchestrator saw it."""
    fingerprint: Fingerprint
    machine: str
    plugins: dict[str, str] = {}
    """Which plugin each technique came from."""
    git: str | None = None
    samples: str | None = None
    """Name of the sidecar with raw samples and per-sample scores."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, serialize_by_alias=True)

    @property
    def headline(self) -> str:
        """The error in one line: of a traceback the exception, otherwise the reason before what was printed."""
        lines = (self.error or "").strip().splitlines() or [""]
        line = lines[-1] if lines[0].startswith("Traceback") else lines[0]
        return (f"rank {self.failing_rank}: " if self.failing_rank is not None else "") + line[:200]


def json_schema() -> dict[str, Any]:
    """JSON Schema of a record's file."""
    return Record.model_json_schema(by_alias=True)
