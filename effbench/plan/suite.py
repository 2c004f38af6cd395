"""Suites: TOML in, a validated `Suite` out; every mistake is one line that says where, what, and what is allowed."""

import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from effbench.plan.claim import Claim
from effbench.plan.mistakes import describe, line_of, mistake, path_of, split_key
from effbench.plugin.cell import Allocator, Sampling
from effbench.plugin.errors import InputError, unknown

PLAIN_AXES = ("seq_len", "batch_size", "world_size")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Training(_Part):
    """How long, and at what peak learning rate."""

    steps: int = Field(default=60, ge=1)
    lr: float = Field(default=1e-3, gt=0)


class InferenceSettings(_Part):
    """Tokens that each sequence generates; the first comes from prefill."""

    new_tokens: int = Field(default=32, ge=2)


class ForWorkload(_Part):
    """What is different for one of the suite's workloads; what is left out is as for the others."""

    models: list[str] | None = Field(default=None, min_length=1)
    """Which of the suite's models it is for."""
    rounds: int | None = Field(default=None, ge=1)
    """So many at most."""
    steps: int | None = Field(default=None, ge=1)
    seq_len: list[int] | None = Field(default=None, min_length=1)
    batch_size: list[int] | None = Field(default=None, min_length=1)

    @field_validator("seq_len", "batch_size")
    @classmethod
    def _sizes(cls, given: list[int] | None) -> list[int] | None:
        if given and min(given) < 1:
            raise ValueError("allowed are whole numbers from 1")
        return given

    @property
    def axes(self) -> dict[str, list[Any]]:
        """The axes that it has values of its own for."""
        return self.model_dump(include={"seq_len", "batch_size"}, exclude_none=True)


class Ranking(_Part):
    """The metric that orders the board."""

    by: str = "train.tokens_per_s"


class QualitySettings(_Part):
    """The score beside cost, and the ratio to the baseline beyond which a row is not ranked."""

    metric: str = "bits_per_byte"
    floor: float | None = Field(default=None, gt=0)
    documents: int = Field(default=32, ge=1)


class Limits(_Part):
    """What a trial may take before it is ended."""

    timeout_s: float = Field(default=600, gt=0)
    compile_s: float = Field(default=600, ge=0)
    """What a trial may take longer if its stack compiles."""
    memory_gb: float | None = Field(default=None, gt=0)
    """Resident GiB of one process."""
    dirty_repeats: int = Field(default=2, ge=0)
    """How often a trial that something else on the machine disturbed is run again."""


class Use(_Part):
    """One technique of a stack, with its options as given."""

    technique: str
    options: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, given: Any) -> Any:
        if isinstance(given, str):
            return {"technique": given}
        if isinstance(given, dict) and "technique" in given and "options" not in given:
            return {"technique": given["technique"], "options": {k: v for k, v in given.items() if k != "technique"}}
        return given


class Stack(_Part):
    """An ordered list of techniques; `[]` is the untouched model."""

    use: list[Use]
    lr: float | None = Field(default=None, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _plain_list(cls, given: Any) -> Any:
        return {"use": given} if isinstance(given, list) else given


class Tuning(_Part):
    """What `effbench tune` saw when it chose a stack's learning rate."""

    metric: str
    split: Literal["validation"]
    lr: list[float]
    scores: list[float]
    """Of each of them, averaged over the seeds; nan where a trial did not end well."""
    seeds: list[int]
    steps: int
    documents: int
    model: str
    workload: str
    seq_len: int
    batch_size: int


class Suite(_Part):
    """Which stacks to run on which models and workloads, over which axes."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    baseline: str
    models: list[str] = Field(min_length=1)
    workloads: list[str] = Field(min_length=1)
    phases: list[Literal["train", "infer"]] = Field(default=["train", "infer"], min_length=1)
    rounds: int = Field(default=3, ge=1)
    seed: int = Field(default=0, ge=0)
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(default=1, ge=1)
    """Of each rank."""
    allocator: Allocator = "default"
    """keep: malloc reuses what was freed and returns none of it to the kernel. glibc alone can."""
    scaling: Literal["strong", "weak"] = "strong"
    """Whether the axis batch_size is that of all ranks together, or of each data-parallel rank."""
    delta: float = Field(default=0.03, gt=0, lt=1)
    """Differences of the ratio within ± delta count as the same."""
    fit_from: int | None = Field(default=None, ge=1)
    """Shortest sequence from which boards fit how cost grows with the length; all lengths when left out."""
    columns: list[str] = []
    """Metrics that the board's tables show beside their own."""
    front: list[str] | None = Field(default=None, min_length=2)
    """Metrics of its Pareto front; what it ranks by and its quality when left out."""
    trust_remote_code: bool = False
    axes: dict[str, list[Any]] = {}
    training: Training = Training()
    for_workload: dict[str, ForWorkload] = {}
    inference: InferenceSettings = InferenceSettings()
    ranking: Ranking = Ranking()
    quality: QualitySettings = QualitySettings()
    limits: Limits = Limits()
    sampling: Sampling = Sampling()
    meters: list[str] | None = Field(default=None, min_length=1)
    """Which meters measure; all of them when left out."""
    stacks: dict[str, Stack] = Field(min_length=1)
    claims: list[Claim] = []
    tuning: dict[str, Tuning] = {}
    """By stack: the evidence for its learning rate, which decides nothing else."""

    @field_validator("axes")
    @classmethod
    def _known_axes(cls, given: dict[str, list[Any]]) -> dict[str, list[Any]]:
        for axis, values in given.items():
            if axis not in PLAIN_AXES and axis.count(".") != 1:
                hint = f'{unknown("axis", axis, PLAIN_AXES)}; a technique\'s option is written "technique.option"'
                raise mistake([axis], hint)
            if not values:
                raise mistake([axis], "has no values")
            # isinstance would let `true` through as 1.
            if axis in PLAIN_AXES and not all(type(v) is int and v >= 1 for v in values):
                raise mistake([axis], f"{values}: allowed are whole numbers from 1")
        return given

    @model_validator(mode="after")
    def _named_workloads(self) -> "Suite":
        for workload, own in self.for_workload.items():
            if workload not in self.workloads:
                raise mistake(["for_workload", workload], str(unknown("workload of this suite", workload, self.workloads)))
            for model in own.models or ():
                if model not in self.models:
                    raise mistake(["for_workload", workload, "models"], str(unknown("model of this suite", model, self.models)))
        chosen = [self.for_workload.get(workload, ForWorkload()).models for workload in self.workloads]
        for model in self.models:
            if not any(models is None or model in models for models in chosen):
                raise mistake(["models"], f"{model!r} has no workload: every [for_workload] names other models")
        return self

    @model_validator(mode="after")
    def _named_stacks(self) -> "Suite":
        named = [(["baseline"], self.baseline)]
        for number, claim in enumerate(self.claims):
            named.append((["claims", str(number), "stack"], claim.stack))
            if claim.parts.stack:
                named.append((["claims", str(number), "relation"], claim.parts.stack))
        named += [(["tuning", name], name) for name in self.tuning]
        for where, name in named:
            if name not in self.stacks:
                raise mistake(where, str(unknown("stack", name, self.stacks)))
        return self

    @model_validator(mode="after")
    def _named_options(self) -> "Suite":
        known = [axis for axis in self.axes if axis not in PLAIN_AXES]
        for number, claim in enumerate(self.claims):
            for axis in sorted(claim.option_axes - {*known}):
                where = "where" if axis in claim.where else "relation"
                raise mistake(["claims", str(number), where], str(unknown("option axis of this suite", axis, known)))
        return self


def standard_suites() -> list[Path]:
    """The suites that effbench ships."""
    return sorted(Path(str(resources.files("effbench_suites"))).glob("*.toml"))


def find_suite(reference: str) -> Path:
    """A suite's file: a path, or the name of a standard suite."""
    path = Path(reference)
    if path.is_file():
        return path
    standard = {file.stem: file for file in standard_suites()}
    if reference in standard:
        return standard[reference]
    if path.suffix == ".toml":
        raise InputError(f"{reference}: no such file")
    raise unknown("suite", reference, standard)


def read_suite(path: Path, overrides: Mapping[str, str] | None = None) -> Suite:
    """Read and validate; InputError with a line per mistake."""
    try:
        text = path.read_text(encoding="utf-8")
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path.name}: not TOML: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    return suite_of(content, path.name, text, overrides)


def suite_of(content: dict[str, Any], name: str, text: str = "", overrides: Mapping[str, str] | None = None) -> Suite:
    """Validate what a file, or a command, says; InputError with a line per mistake, and where it stands in the `text`."""
    for key, value in (overrides or {}).items():
        _override(content, key, value)
    try:
        return Suite.model_validate(content)
    except ValidationError as error:
        set_paths = {f"--set {key}={value}": _key_parts(key) for key, value in (overrides or {}).items()}
        lines = dict.fromkeys(_mistake(name, text, set_paths, dict(detail)) for detail in error.errors())
        raise InputError("\neffbench: ".join(lines)) from error


def _override(content: dict[str, Any], key: str, value: str) -> None:
    parts = _key_parts(key)
    for part in parts[:-1]:
        inner = content.setdefault(part, {})
        if not isinstance(inner, dict):
            raise InputError(f"--set {key}={value}: {part!r} is not a table")
        content = inner
    try:
        content[parts[-1]] = tomllib.loads(f"x = {value}")["x"]
    except tomllib.TOMLDecodeError:
        content[parts[-1]] = value  # a bare word is a string


def _key_parts(key: str) -> list[str]:
    """A TOML key's parts. Below axes the rest is one name, quoted or not."""
    if key.startswith("axes."):
        return ["axes", key.removeprefix("axes.").strip("\"'")]
    return split_key(key)


def _mistake(file: str, text: str, set_paths: Mapping[str, list[str]], detail: dict[str, Any]) -> str:
    where = path_of(detail)
    line = line_of(text, where)
    place = f"{file}:{line}" if line else file
    for setting, path in set_paths.items():
        if where[: len(path)] == path:
            place = setting  # the file's own line, if there is one, is not what is wrong
    return describe(place, Suite, where, detail)
