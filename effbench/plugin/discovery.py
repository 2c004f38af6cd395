"""Finds plugins: bundled, installed, given files and folders. Each loads in isolation; a broken one is reported."""

import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pluggy

from effbench import hookspecs
from effbench.plugin.catalog import Catalog, PluginInfo, Registry, Source
from effbench.plugin.errors import unknown
from effbench.plugin.launcher import AnyLauncher
from effbench.plugin.meter import Meter
from effbench.plugin.model import ModelSource
from effbench.plugin.reporter import Reporter
from effbench.plugin.technique import Family, Technique
from effbench.plugin.workload import Workload

_KINDS: dict[str, type] = {
    "techniques": Technique,
    "models": ModelSource,
    "workloads": Workload,
    "meters": Meter,
    "launchers": AnyLauncher,
    "reporters": Reporter,
}
_HOOKS = frozenset(f"register_{kind}" for kind in _KINDS)


@dataclass(frozen=True)
class _Found:
    name: str
    source: Source
    version: str
    load: Callable[[], ModuleType]


class _PluginError(Exception):
    """Why a plugin is not used, in one line."""


def discover(files: Sequence[Path] = (), folders: Sequence[Path] = ()) -> Catalog:
    """Load every plugin there is. InputError where two register the same name; other failures are in `catalog.plugins`."""
    catalog, manager = Catalog(), pluggy.PluginManager("effbench")
    manager.add_hookspecs(hookspecs)
    # A file that is given twice, or that also lies in a folder, is one plugin and not a duplicate.
    given = {path.resolve(): path for path in files}
    inside = [path for path in _within(folders) if path.resolve() not in given]
    for found in [*_bundled(), *_installed(), *_files(list(given.values()), "file"), *_files(inside, "folder")]:
        catalog.plugins.append(_load(found, catalog, manager))
    return catalog


def _load(found: _Found, catalog: Catalog, manager: pluggy.PluginManager) -> PluginInfo:
    had_torch = "torch" in sys.modules
    try:
        # What a plugin prints while it is imported or registers must not end up in `--json` output.
        with contextlib.redirect_stdout(sys.stderr):
            things = _registered(found.load(), found.name, manager)
    except _PluginError as error:
        return PluginInfo(found.name, found.source, found.version, str(error))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - whatever a plugin does at import, the others must work
        return PluginInfo(found.name, found.source, found.version, _cause(error))
    for kind, thing in things:
        registry: Registry[Any] = getattr(catalog, kind)
        registry.add(thing, f"{found.name} ({found.version})")
    provides = {kind: [str(t.name) for k, t in things if k == kind] for kind in _KINDS if any(k == kind for k, _ in things)}
    torch_now = "torch" in sys.modules and not had_torch
    return PluginInfo(found.name, found.source, found.version, None, torch_now, provides)


def _registered(module: ModuleType, name: str, manager: pluggy.PluginManager) -> list[tuple[str, Any]]:
    _refuse_mistyped(module)
    try:
        manager.register(module, name=f"{name} at {id(module)}")
    except pluggy.PluginValidationError as error:
        raise _PluginError(": ".join(str(error).splitlines()[1:]) or str(error)) from error
    things: list[tuple[str, Any]] = []
    for kind, base in _KINDS.items():
        implementation = getattr(module, f"register_{kind}", None)
        if implementation is not None:
            implementation(lambda thing, kind=kind, base=base: things.append((kind, _checked(thing, kind, base))))
    return things


def _refuse_mistyped(module: ModuleType) -> None:
    for name, member in vars(module).items():
        marked = inspect.isfunction(member) and hasattr(member, "effbench_impl")
        if inspect.isfunction(member) and name in _HOOKS and not marked:
            raise _PluginError(f"{name} is not marked with @hookimpl (from effbench.plugin import hookimpl)")
        # An imported function, such as torch.library's register_fake, is nobody's mistyped hook.
        own = inspect.isfunction(member) and member.__module__ == module.__name__
        if name not in _HOOKS and (marked or (own and name.startswith("register_"))):
            raise _PluginError(str(unknown("hook", name, _HOOKS)))


def _checked(given: Any, kind: str, base: type) -> Any:
    if not (inspect.isclass(given) and issubclass(given, base)):
        raise _PluginError(f"register_{kind} was given {given!r}; it takes subclasses of {base.__name__}")
    thing: Any = given  # mypy would take it for a plain object
    needed = ["name", "family"] if base is Technique else ["name"]
    for attribute in needed:
        if not isinstance(getattr(thing, attribute, None), str):
            raise _PluginError(f"{thing.__name__} has no {attribute}: write `{attribute}: ClassVar = ...`")
    if not (thing.__doc__ or "").strip() or thing.__doc__ == base.__doc__:
        raise _PluginError(f"{thing.__name__} has no docstring; its first line is the summary that `effbench list` shows")
    if base is Technique and thing.family not in get_args(Family):
        raise _PluginError(f"{thing.__name__}: {unknown('family', thing.family, get_args(Family))}")
    if inspect.isabstract(thing):
        raise _PluginError(f"{thing.__name__} lacks {', '.join(sorted(thing.__abstractmethods__))}")
    return thing


def _cause(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    if isinstance(error, SyntaxError):
        return f"SyntaxError: {error.msg} ({Path(error.filename or '').name}:{error.lineno})"
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}{where}"


def _bundled() -> Iterator[_Found]:
    version = f"effbench {metadata.version('effbench')}"
    for module in pkgutil.iter_modules(importlib.import_module("effbench_plugins").__path__):
        yield _Found(module.name, "bundled", version, _importer(f"effbench_plugins.{module.name}"))


def _importer(name: str) -> Callable[[], ModuleType]:
    return lambda: importlib.import_module(name)


def _installed() -> Iterator[_Found]:
    for point in metadata.entry_points(group="effbench"):
        version = f"{point.dist.name} {point.dist.version}" if point.dist else point.value
        yield _Found(point.name, "entry point", version, point.load)


def _files(paths: Sequence[Path], source: Source) -> Iterator[_Found]:
    for path in paths:
        yield _Found(path.stem, source, path.name, _file_loader(path))


def _within(folders: Sequence[Path]) -> list[Path]:
    """What lies in them; the bundled plugins, beside a suite at the top of effbench's own checkout, are loaded already."""
    bundled = {Path(path).resolve() for path in importlib.import_module("effbench_plugins").__path__}
    inside = [path for folder in folders if folder.resolve() not in bundled for path in sorted(folder.iterdir())]
    modules = [p for p in inside if p.suffix == ".py" and p.name != "__init__.py"]
    return modules + [p for p in inside if (p / "__init__.py").is_file()]


def _file_loader(path: Path) -> Callable[[], ModuleType]:
    def load() -> ModuleType:
        file = path / "__init__.py" if path.is_dir() else path
        if not file.is_file():
            raise _PluginError(f"{path}: no such file")
        # The resolved path tells two files of one name apart; pickling and inspect need the module in sys.modules.
        name = f"effbench_file_{path.stem}_{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:8]}"
        search = [str(path)] if path.is_dir() else None
        spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=search)
        if spec is None or spec.loader is None:
            raise _PluginError(f"{path}: not a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            sys.modules.pop(name, None)  # half a module must not be found by a later import
            raise
        return module

    return load
