"""Real text that every CPython carries: the language reference, the library's source and its docstrings.

Nothing is copied into the repository; the text is read from the running interpreter, so it differs a little between
Python versions, and every record carries the hash of what was read. Held-out documents are chosen by a hash of their
*name*, so a document trained on under one Python version is not held out under another.
"""

import ast
import functools
import hashlib
import inspect
import sysconfig
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

SplitName = Literal["train", "validation", "test"]

# Tests and tables are not prose or ordinary code; pydoc_data holds the topics themselves, and with them the held-out ones.
_SKIPPED_FOLDERS = frozenset({"test", "tests", "idle_test", "encodings", "pydoc_data", "site-packages", "__pycache__"})
_SPLIT_SALT = "effbench-2"  # the first of effbench-0, -1, … to leave the four largest topics, which quote many others, in train
_SHINGLE_WORDS = 13  # the usual width for contamination checks (Brown et al. 2020, appendix C)


@dataclass(frozen=True)
class Document:
    """One text with a name that is stable between Python versions."""

    name: str
    text: str
    prompt: str = ""
    """What precedes the text and is given, not learnt or scored."""


class Splits(NamedTuple):
    """Documents for training, for choosing settings, and for the board; no paragraph is in two of them."""

    train: list[Document]
    validation: list[Document]
    test: list[Document]


def topics() -> list[Document]:
    """The language reference as `help()` shows it: about 80 English documents, 0.5 MB."""
    from pydoc_data import topics as module

    return [Document(name, text) for name, text in sorted(module.topics.items())]


def library_source() -> list[Document]:
    """The standard library's source files without their docstrings, comments kept: about 7 MB."""
    return [file.source for file in _library()]


def docstrings() -> list[Document]:
    """The standard library's docstrings, each text once, named `module:qualname`."""
    found: dict[str, Document] = {}
    for file in _library():
        for document in file.docstrings:
            found.setdefault(document.text, document)
    return list(found.values())


def split_of(name: str) -> SplitName:
    """The split that a document's name falls in, the same on every machine and Python version."""
    point = int.from_bytes(hashlib.sha256(f"{_SPLIT_SALT}:{name}".encode()).digest()[:8], "big") / 2**64
    return "test" if point < 0.2 else "validation" if point < 0.3 else "train"


def split(documents: Iterable[Document]) -> Splits:
    """Divide documents by name, then drop from train what validation or test also say, and from validation what test says.

    Large documents often quote small ones. A paragraph is dropped when it shares 13 consecutive words (or, where shorter, all
    its words) with a split that is further from training.
    """
    parts: dict[SplitName, list[Document]] = {"train": [], "validation": [], "test": []}
    for document in documents:
        parts[split_of(document.name)].append(document)
    test = parts["test"]
    taken = shingles(test)
    validation = without(parts["validation"], taken)
    return Splits(without(parts["train"], taken | shingles(validation)), validation, test)


def without(documents: Iterable[Document], taken: frozenset[int]) -> list[Document]:
    """The documents less every paragraph that has a shingle in `taken`; a document with nothing left is left out."""
    kept = []
    for document in documents:
        paragraphs = [p for p in document.text.split("\n\n") if taken.isdisjoint(_paragraph_shingles(p))]
        if text := "\n\n".join(paragraphs).strip():
            kept.append(Document(document.name, text))
    return kept


def shingles(documents: Iterable[Document]) -> frozenset[int]:
    """Hashes of every paragraph's runs of 13 words, for finding text that two sets of documents share."""
    return frozenset(s for d in documents for p in d.text.split("\n\n") for s in _paragraph_shingles(p))


def reference_corpus() -> list[Document]:
    """What the shipped reference model was trained on: the topics' train split, and the library's source."""
    parts = split(topics())
    held_out = shingles(parts.validation + parts.test)
    return parts.train + without(library_source(), held_out)


def unseen_docstrings(min_chars: int = 200) -> list[Document]:
    """Docstrings of at least `min_chars` characters, less what the reference corpus also says: new to the shipped model."""
    return [d for d in without(docstrings(), shingles(reference_corpus())) if len(d.text) >= min_chars]


def data_hash(documents: Sequence[Document]) -> str:
    """A short hash of names and texts; two records with different hashes were not measured on the same text."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(f"{document.name}\0{document.prompt}\0{document.text}\0".encode())
    return digest.hexdigest()[:16]


def _paragraph_shingles(paragraph: str) -> Iterator[int]:
    words = [w for w in paragraph.split() if w != "#"]  # a comment's marker is not a word of its text
    if len(words) >= 6:  # shorter ones ("Returns:", "Example:") are shared by everything and say nothing
        for start in range(max(1, len(words) - _SHINGLE_WORDS + 1)):
            yield hash(tuple(words[start : start + _SHINGLE_WORDS]))


@dataclass(frozen=True)
class _LibraryFile:
    source: Document
    docstrings: tuple[Document, ...]


@functools.cache
def _library() -> tuple[_LibraryFile, ...]:
    root = Path(sysconfig.get_paths()["stdlib"])
    files = []
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if _SKIPPED_FOLDERS.isdisjoint(relative.parts) and not relative.parts[0].startswith("config-"):
            try:
                files.append(_read(".".join(relative.with_suffix("").parts), path.read_text(encoding="utf-8")))
            except (SyntaxError, UnicodeDecodeError):  # lib2to3 ships files in Python 2's grammar on purpose
                continue
    return tuple(files)


def _read(name: str, source: str) -> _LibraryFile:
    with warnings.catch_warnings(action="ignore"):  # old escapes in library files are not the user's business
        tree = ast.parse(source)
    lines, found = source.splitlines(), []
    for qualname, expression in _docstrings_in(tree):
        found.append(Document(f"{name}:{qualname}", inspect.cleandoc(str(expression.value))))
        for number in range(expression.lineno - 1, expression.end_lineno or expression.lineno):
            lines[number] = ""
    return _LibraryFile(Document(name, "\n".join(line for line in lines if line.strip())), tuple(found))


def _docstrings_in(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.Constant]]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        match node.body:
            case [ast.Expr(value=ast.Constant(value=str()) as expression), *_]:
                yield prefix, expression
    for child in ast.iter_child_nodes(node):
        name = getattr(child, "name", None) if isinstance(child, ast.stmt) else None
        yield from _docstrings_in(child, f"{prefix}.{name}".lstrip(".") if name else prefix)
