"""A folder of published files, and the list of those that a later publish may take away again."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from effbench.plugin.errors import InputError
from effbench.plugin.mark import shows_the_same
from effbench.store.store import write_atomic

MANIFEST = ".effbench-publish.json"
"""Names what a publish wrote, so that the next one removes what it no longer writes, and nothing else."""


class Folder:
    """Where files are published; nothing outside of it is ever written, read or removed."""

    def __init__(self, path: Path) -> None:
        """InputError where it is something else than a folder."""
        if path.exists() and not path.is_dir():
            raise InputError(f"--to {path}: is a file; give a folder, which need not exist yet")
        self.path = path

    def write(self, files: Mapping[str, bytes]) -> list[str]:
        """Write all of them, each atomically, then remove what an earlier publish alone had; returns the removed names."""
        targets = {name: self._target(name) for name in files}
        earlier = self._earlier()
        # Listed before they are written: a publish that is cut short leaves nothing that the next one does not know.
        self._list({*files, *earlier})
        for name, content in files.items():
            self._make(targets[name].parent)
            if not _equal(targets[name], content):
                write_atomic(targets[name], content)
        removed = sorted(earlier - {*files})
        for name in removed:
            self._remove(self._target(name))
        self._list(files)
        return removed

    def stale(self, files: Mapping[str, bytes]) -> list[str]:
        """What a publish would change, a line each. Plots and Parquet files are compared by what they show."""
        found = []
        for name, content in sorted(files.items()):
            target = self._target(name)
            if not target.is_file():
                found.append(f"{name} is missing")
            elif not _equal(target, content):
                found.append(f"{name} shows other results")
        left = sorted(name for name in self._earlier() - {*files} if self._target(name).is_file())
        return [*found, *(f"{name} is left over" for name in left)]

    def _target(self, name: str) -> Path:
        """InputError where a name leads out of the folder, by itself or through a link."""
        parts = PurePosixPath(name).parts
        plain = name == "/".join(parts) and all(part.isprintable() and not {*part} & {*"\\:"} for part in parts)
        target = self.path / name
        root = self.path.resolve()
        inside = plain and bool(parts) and ".." not in parts and target.parent.resolve().is_relative_to(root)
        if not inside or name == MANIFEST or parts[0] == "/":
            raise InputError(
                f"{name!r}: no name for a file within {self.path}; a format may write names like 'plots/a.svg' alone"
            )
        return target

    def _earlier(self) -> set[str]:
        """Names that the last publish listed; none where there was none."""
        file = self.path / MANIFEST
        if not file.is_file():
            return set()
        try:
            names = json.loads(file.read_text(encoding="utf-8"))["files"]
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise TypeError
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{file}: not a list of published files; remove it, and what it stood for") from error
        for name in names:
            self._target(name)  # refused before anything is written
        return set(names)

    def _list(self, names: Iterable[str]) -> None:
        self._make(self.path)
        write_atomic(self.path / MANIFEST, json.dumps({"files": sorted(names)}, indent=1).encode() + b"\n")

    def _make(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder}: cannot be made ({error.strerror})") from error

    def _remove(self, file: Path) -> None:
        """The file, and the folders that it leaves empty."""
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            raise InputError(f"{file}: no longer published, but cannot be removed ({error.strerror})") from error
        for folder in file.parents:
            if folder == self.path or not folder.is_dir() or any(folder.iterdir()):
                return
            folder.rmdir()


def _equal(file: Path, content: bytes) -> bool:
    """Whether it need not be written: a plot that shows the same stays as it is, and version control quiet."""
    return file.is_file() and not file.is_symlink() and shows_the_same(file.name, file.read_bytes(), content)
