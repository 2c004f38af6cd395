"""Workloads that are text: the language reference, the library's docstrings, and the user's own."""

import hashlib
import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from effbench.plugin import InputError, Workload, hookimpl
from effbench.plugin.text_workload import TextWorkload, require_splits
from effbench.reference import texts
from effbench.reference.texts import Document, Splits

_GROUP_CHARS = 1000


class Docs(TextWorkload):
    """Language modelling on held-out pages of Python's language reference: English close to what tiny-llama was trained on."""

    name: ClassVar = "docs"

    def read(self) -> Splits:
        """The topics that `help()` shows."""
        return texts.split(texts.topics())


class Docstrings(TextWorkload):
    """Fine-tuning on the standard library's docstrings, none of which tiny-llama has seen: a real domain shift."""

    name: ClassVar = "docstrings"

    def read(self) -> Splits:
        """Parsing the whole library takes seconds, so the result is kept in the user's cache folder."""
        cache = _cache_file()
        try:
            return Splits(*([Document(**item) for item in part] for part in json.loads(cache.read_text(encoding="utf-8"))))
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError) as error:
            logging.getLogger(__name__).warning("text cache is unreadable, making it again: %s", error)
        splits = texts.split(texts.unseen_docstrings())
        _write_cache(cache, splits)
        return splits


class OwnText(TextWorkload):
    """`text:PATH`: your own text, as a plain file, or JSONL with `text` or with `prompt` and `completion`."""

    name: ClassVar = "text"

    @property
    def label(self) -> str:
        """The file's name alone."""
        return f"text:{Path(self.argument or '').name}"

    def read(self) -> Splits:
        """Split by a hash of each document's content, so that the same text is never in two splits."""
        path = Path(self.argument or "")
        if not path.is_file():
            raise InputError(f"workload text:{path}: no such file; write text:PATH with a .txt or .jsonl file")
        try:
            content = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"workload text:{path}: cannot be read as UTF-8: {error}") from error
        documents = list(_lines(content, path) if path.suffix == ".jsonl" else _passages(content))
        parts: dict[str, list[Document]] = {"train": [], "validation": [], "test": []}
        for document in {d.name: d for d in documents}.values():  # a text that stands twice counts once
            parts[texts.split_of(document.name)].append(document)
        return require_splits(Splits(**parts), self.label)


def _passages(content: str) -> Iterator[Document]:
    """Paragraphs, grouped up to about 1000 characters."""
    group = ""
    for paragraph in (p.strip("\n") for p in content.split("\n\n")):
        if group and len(group) + len(paragraph) > _GROUP_CHARS:
            yield _named(group)
            group = ""
        group = f"{group}\n\n{paragraph}".strip("\n")
    if group.strip():
        yield _named(group)


def _lines(content: str, path: Path) -> Iterator[Document]:
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            item: Any = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"workload text:{path}: line {number} is not JSON: {error.msg}") from error
        match item:
            case {"text": str(text)} if text:
                yield _named(text)
            case {"prompt": str(prompt), "completion": str(completion)} if completion:
                yield _named(completion, prompt)
            case _:
                raise InputError(
                    f'workload text:{path}: line {number}: expected {{"text": …}} or {{"prompt": …, "completion": …}}'
                )


def _named(text: str, prompt: str = "") -> Document:
    return Document(hashlib.sha256(f"{prompt}\0{text}".encode()).hexdigest()[:12], text, prompt)


def _cache_file() -> Path:
    from platformdirs import user_cache_dir

    made_by = hashlib.sha256(sys.version.encode() + Path(texts.__file__).read_bytes()).hexdigest()[:16]
    return Path(user_cache_dir("effbench")) / f"docstrings-{made_by}.json"


def _write_cache(file: Path, splits: Splits) -> None:
    from effbench.store.store import write_atomic

    content = json.dumps([[document.__dict__ for document in part] for part in splits]).encode()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, content)
    except (OSError, InputError) as error:  # slower next time, and nothing else
        logging.getLogger(__name__).warning("text cache not written: %s", error)


@hookimpl
def register_workloads(register: "Callable[[type[Workload]], None]") -> None:
    """Register the text workloads."""
    for workload in (Docs, Docstrings, OwnText):
        register(workload)
