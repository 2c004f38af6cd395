"""Pieces of the standard library's source, labelled with the kind of module they come from."""

import hashlib
import re
from collections.abc import Iterator, Sequence

from effbench.reference import texts
from effbench.reference.texts import Document, Splits

KINDS = {
    "internet": (
        "asynchat asyncore cgi cgitb email ftplib html http imaplib ipaddress mailbox mimetypes netrc nntplib poplib smtpd "
        "smtplib socket socketserver ssl telnetlib urllib webbrowser wsgiref xmlrpc"
    ),
    "concurrency": (
        "_threading_local asyncio concurrent contextvars multiprocessing pty queue sched selectors signal subprocess threading"
    ),
    "language": (
        "abc ast bdb code codeop compileall dataclasses dis doctest enum functools importlib inspect keyword lib2to3 linecache "
        "modulefinder opcode pdb pickletools pkgutil py_compile pyclbr pydoc runpy symtable tabnanny token tokenize trace "
        "traceback types typing zipimport"
    ),
    "data": (
        "_collections_abc _pydatetime _pydecimal _pylong _strptime array bisect bz2 calendar collections colorsys configparser "
        "copy csv datetime dbm decimal difflib fractions gzip heapq json lzma numbers pickle plistlib random shelve sqlite3 "
        "statistics string struct tarfile textwrap tomllib xml zipfile zoneinfo"
    ),
}
"""Which top-level modules are of which kind. A Python version that lacks some has a little less text."""
_KIND_OF = {module: kind for kind, modules in KINDS.items() for module in modules.split()}
# Alone, or joined with underscores; `HTTPServer` and `last`, which hold `http` and `ast`, stay what they are.
_MODULE_NAME = re.compile(rf"(?<![a-z0-9])({'|'.join(sorted(_KIND_OF, key=len, reverse=True))})(?![a-z0-9])", re.IGNORECASE)
_PER_MODULE = 8  # pieces of one held-out module: a few large files must not be most of a split


def pieces(size: int) -> list[list[tuple[str, str, int]]]:
    """(name, text, number of its kind) in each split, `size` bytes each, and as many of one kind as of another.

    Modules are split, never their pieces; paragraphs that two splits share are dropped from the one nearer to training. Names
    of the listed modules are struck out, and what is not ASCII becomes a question mark.
    """
    documents = [
        Document(document.name, _MODULE_NAME.sub("_", document.text))
        for document in texts.library_source()
        if document.name.partition(".")[0] in _KIND_OF
    ]
    splits = texts.split(documents)
    return [
        _balanced(part, size, None if split == "train" else _PER_MODULE)
        for split, part in zip(Splits._fields, splits, strict=True)
    ]


def _balanced(documents: Sequence[Document], size: int, most: int | None) -> list[tuple[str, str, int]]:
    """As many pieces of each kind as the rarest kind has, the kinds taking turns, in an order that their names alone decide."""
    found: dict[str, list[tuple[str, str, int]]] = {kind: [] for kind in KINDS}
    for document in documents:
        kind = _KIND_OF[document.name.partition(".")[0]]
        cut = sorted(_cut(document, size), key=_order)[:most]
        found[kind] += [(name, text, list(KINDS).index(kind)) for name, text in cut]
    count = min(map(len, found.values()))
    return [
        piece
        for one_of_each in zip(*(sorted(of, key=_order)[:count] for of in found.values()), strict=True)
        for piece in one_of_each
    ]


def _cut(document: Document, size: int) -> Iterator[tuple[str, str]]:
    text = document.text.encode("ascii", errors="replace").decode()
    for start in range(0, len(text) - size + 1, size):
        yield f"{document.name}#{start}", text[start : start + size]


def _order(piece: Sequence[object]) -> bytes:
    return hashlib.sha256(str(piece[0]).encode()).digest()
