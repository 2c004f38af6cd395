"""Workloads that are text: the language reference, the library's docstrings, and the user's own."""

import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from effbench.plugin import InputError, Workload, hookimpl
from effbench.plugin.text_workload import TextWorkload
from effbench.reference import texts
from effbench.reference.texts import Document, Splits
from effbench.store.cache import kept

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
        made_by = sys.version.encode() + Path(texts.__file__).read_bytes()
        parts = kept("docstrings", made_by, _unseen_docstrings)
        return Splits(*([Document(**item) for item in part] for part in parts))


class OwnText(TextWorkload):
    """`text:PATH`: your own text, as a plain file, or JSONL with `text` or with `prompt` and `completion`."""

    name: ClassVar = "text"

    @property
    def label(self) -> str:
        """The file's name alone."""
        return f"text:{Path(self.argument or '').name}"

    def read(self) -> Splits:
        """Split by a hash of each document's content, or of its prompt; what two splits both say is dropped from one."""
        path = Path(self.argument or "")
        if not path.is_file():
            raise InputError(f"workload text:{path}: no such file; write text:PATH with a .txt or .jsonl file")
        try:
            content = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"workload text:{path}: cannot be read as UTF-8: {error}") from error
        if not content.strip():
            raise InputError(f"workload text:{path}: the file is empty")
        documents = list(_lines(content, path) if path.suffix == ".jsonl" else _passages(content))
        once = {document.name: document for document in documents}.values()  # a text that stands twice counts once
        plain = texts.split(document for document in once if not document.prompt)
        # Answers of a class, and instructions, repeat by nature: with prompts, only the whole prompt must not be shared.
        parts: dict[str, list[Document]] = {"train": [], "validation": [], "test": []}
        for document in once:
            if document.prompt:
                parts[texts.split_of(_short_hash(document.prompt))].append(document)
        return Splits(*(a + b for a, b in zip(plain, Splits(**parts), strict=True)))


def _passages(content: str) -> Iterator[Document]:
    """Paragraphs, grouped up to about 1000 characters."""
    group = ""
    for paragraph in re.split(r"\n\s*\n", content):
        if group and len(group) + len(paragraph) > _GROUP_CHARS:
            yield _named(group)
            group = ""
        group = f"{group}\n\n{paragraph}".strip("\n")
    if group.strip():
        yield _named(group)


def _lines(content: str, path: Path) -> Iterator[Document]:
    for number, line in enumerate(content.split("\n"), start=1):  # a JSON string may hold other line separators
        if not line.strip():
            continue
        try:
            item: Any = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"workload text:{path}: line {number} is not JSON: {error.msg}") from error
        match item:
            case {"text": str(text)} if text.strip():
                yield _named(text)
            case {"prompt": str(prompt), "completion": str(completion)} if completion.strip():
                yield _named(completion, prompt)
            case _:
                raise InputError(
                    f'workload text:{path}: line {number}: expected {{"text": …}} or {{"prompt": …, "completion": …}}'
                )


def _named(text: str, prompt: str = "") -> Document:
    return Document(_short_hash(f"{prompt}\0{text}"), text, prompt)


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _unseen_docstrings() -> list[list[dict[str, str]]]:
    return [[dict(vars(document)) for document in part] for part in texts.split(texts.unseen_docstrings())]


@hookimpl
def register_workloads(register: "Callable[[type[Workload]], None]") -> None:
    """Register the text workloads."""
    for workload in (Docs, Docstrings, OwnText):
        register(workload)
