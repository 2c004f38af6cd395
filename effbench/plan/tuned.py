"""Writing what a sweep found into a suite's file, whose comments and order stay."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.items import AbstractTable

from effbench.plugin.errors import InputError
from effbench.store.store import write_atomic


def write_tuned(file: Path, stack: str, lr: float, evidence: Mapping[str, Any]) -> None:
    """Set a stack's learning rate, and its table below `[tuning]`."""
    document = tomlkit.parse(file.read_text(encoding="utf-8"))
    stacks: Any = document["stacks"]
    given = stacks[stack]
    if isinstance(given, AbstractTable):
        given["lr"] = lr
    else:  # a plain list becomes a table around it, and keeps the comment behind it
        table = tomlkit.inline_table()
        table.trivia.comment_ws, table.trivia.comment = given.trivia.comment_ws, given.trivia.comment
        given.trivia.comment_ws = given.trivia.comment = ""
        table["use"], table["lr"] = given, lr
        stacks[stack] = table
    if "tuning" not in document:
        document["tuning"] = tomlkit.table(is_super_table=True)
    tuning: Any = document["tuning"]
    found = tomlkit.table()
    found.update(evidence)
    tuning[stack] = found
    try:
        write_atomic(file, tomlkit.dumps(document).encode())
    except OSError as error:
        raise InputError(f"{file}: cannot be written: {error}") from error
