"""Names to objects: what every plugin registered, and which plugin it was."""

import hashlib
import inspect
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from pydantic import ValidationError

from effbench.plugin.errors import InputError, unknown
from effbench.plugin.launcher import AnyLauncher, ArrayLauncher, Launcher
from effbench.plugin.meter import Meter, Metric
from effbench.plugin.model import ModelSource
from effbench.plugin.reporter import Reporter, TextReporter
from effbench.plugin.technique import Technique
from effbench.plugin.workload import Workload

T = TypeVar("T")
Made = TypeVar("Made", bound=Technique | AnyLauncher)
Source = Literal["bundled", "entry point", "file", "folder"]


@dataclass(frozen=True)
class PluginInfo:
    """One plugin, used or broken."""

    name: str
    source: Source
    version: str
    problem: str | None = None
    """Why it is not used."""
    imports_torch: bool = False
    provides: Mapping[str, list[str]] = field(default_factory=dict)


class Registry(Generic[T]):
    """Classes of one kind by name."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._found: dict[str, tuple[type[T], str]] = {}

    def add(self, thing: type[T], plugin: str) -> None:
        """Register; InputError naming both plugins where the name is taken."""
        name = str(thing.name)  # type: ignore[attr-defined]  # discovery has checked that it has one
        if name in self._found:
            raise InputError(f"{self.kind} {name!r} is registered by both {self._found[name][1]} and {plugin}: rename one")
        self._found[name] = (thing, plugin)

    def get(self, name: str) -> type[T]:
        """The class; InputError with the nearest names where there is none."""
        if name not in self._found:
            raise unknown(self.kind, name, self._found)
        return self._found[name][0]

    def plugin_of(self, name: str) -> str:
        """Which plugin registered it."""
        self.get(name)
        return self._found[name][1]

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._found)

    def __iter__(self) -> Iterator[type[T]]:
        return iter(self._found[name][0] for name in self.names())


class Catalog:
    """Everything a suite can name."""

    def __init__(self) -> None:
        self.techniques: Registry[Technique] = Registry("technique")
        self.models: Registry[ModelSource] = Registry("model")
        self.workloads: Registry[Workload] = Registry("workload")
        self.meters: Registry[Meter] = Registry("meter")
        self.launchers: Registry[AnyLauncher] = Registry("launcher")
        self.reporters: Registry[Reporter] = Registry("reporter")
        self.plugins: list[PluginInfo] = []

    def technique(self, name: str, options: Mapping[str, Any]) -> Technique:
        """A technique with validated options."""
        return _made("technique", self.techniques.get(name), options)

    def model(self, reference: str, *, trust_remote_code: bool = False) -> ModelSource:
        """The source behind `name` or `name:argument`."""
        name, separator, argument = reference.partition(":")
        return self.models.get(name)(argument if separator else None, trust_remote_code=trust_remote_code)

    def workload(self, reference: str) -> Workload:
        """The workload behind `name` or `name:argument`."""
        name, separator, argument = reference.partition(":")
        return self.workloads.get(name)(argument if separator else None)

    def launcher(self, name: str, options: Mapping[str, Any] | None = None) -> Launcher:
        """A launcher of workers with validated options."""
        launcher = self.launchers.get(name)
        if not issubclass(launcher, Launcher):
            raise InputError(f"launcher {name!r} hands whole runs to a cluster, as only `effbench run` can; use 'local' here")
        return _made("launcher", launcher, options or {})

    def array_launcher(self, name: str, options: Mapping[str, Any]) -> ArrayLauncher | None:
        """A launcher of whole runs with validated options; None where the name is of one that starts workers."""
        launcher = self.launchers.get(name)
        return _made("launcher", launcher, options) if issubclass(launcher, ArrayLauncher) else None

    def text_reporter(self, name: str) -> TextReporter:
        """A format that can be printed."""
        reporter = self.reporters.get(name)()
        if not isinstance(reporter, TextReporter):
            texts = ", ".join(sorted(other.name for other in self.reporters if issubclass(other, TextReporter)))
            raise InputError(f"format {name!r} is no text: `effbench publish` writes its files; to print there are {texts}")
        return reporter

    def metrics(self) -> dict[str, Metric]:
        """Every metric by name: those of meters, and what techniques count."""
        return {metric.name: metric for source in (*self.meters, *self.techniques) for metric in source.metrics}

    def technique_hash(self, name: str) -> str:
        """Hash of the source a technique is made of: its file, or every .py file of its folder."""
        module = sys.modules[self.techniques.get(name).__module__]
        file = Path(inspect.getfile(module))
        package = getattr(module, "__path__", None) or "." in module.__name__.removeprefix("effbench_plugins.")
        files = sorted(file.parent.rglob("*.py")) if package else [file]
        digest = hashlib.sha256()
        for source in files:
            digest.update(source.read_bytes())
        return digest.hexdigest()[:16]


def _made(kind: str, thing: type[Made], options: Mapping[str, Any]) -> Made:
    try:
        return thing(**options)
    except ValidationError as error:
        raise InputError(_option_error(kind, thing, error)) from error


def _option_error(kind: str, thing: type[Made], error: ValidationError) -> str:
    """The first thing wrong with a technique's or launcher's options, in one line."""
    first = error.errors()[0]
    option, what = ".".join(map(str, first["loc"])), f"{kind} {thing.name!r}"
    if first["type"] == "extra_forbidden":
        return f"{what}: {unknown('option', option, thing.model_fields)}"
    if first["type"] == "missing":
        return f"{what}: option {option!r} is required"
    message = " ".join(first["msg"].removeprefix("Value error, ").split())
    if not option:  # a rule over several options at once
        return f"{what}: {message}"
    return f"{what}: option {option} = {first['input']!r}: {message[:1].lower()}{message[1:]}"
