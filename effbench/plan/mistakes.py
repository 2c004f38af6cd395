"""What is wrong with a suite, in one line per mistake: where it stands, what was given, what is allowed."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticCustomError

from effbench.plugin.errors import unknown

_KEY = r"\"[^\"]*\"|'[^']*'|[\w-]+"
_DOTTED = rf"(?:{_KEY})(?:\s*\.\s*(?:{_KEY}))*"
_LINE = re.compile(rf"\s*(?:(?P<open>\[\[?)\s*(?P<table>{_DOTTED})\s*\]|(?P<entry>{_DOTTED})\s*=)")


def mistake(where: Iterable[str], message: str) -> PydanticCustomError:
    """A mistake at a key below the one that a validator looks at, which pydantic alone cannot say."""
    return PydanticCustomError("mistake", "{message}", {"message": message, "where": list(where)})


def describe(place: str, model: type[BaseModel], where: Sequence[str], detail: Mapping[str, Any]) -> str:
    """One line for one of pydantic's errors; `where` is `path_of` it."""
    key = ".".join(where)
    if detail["type"] == "extra_forbidden":
        prefix = ".".join(where[:-1])
        return f"{place}: {unknown('key', key, (f'{prefix}.{name}'.lstrip('.') for name in _keys(model, where[:-1])))}"
    if detail["type"] == "missing":
        return f"{place}: {key} is missing"
    message = str(detail["msg"]).removeprefix("Value error, ")
    return f"{place}: {key}: {message}" if detail["type"] == "mistake" else f"{place}: {key} = {detail['input']!r}: {message}"


def path_of(detail: Mapping[str, Any]) -> list[str]:
    """The keys that lead to a mistake; list positions are digits."""
    outer = [str(part) for part in detail["loc"] if not str(part).startswith("function-")]
    return outer + list(detail.get("ctx", {}).get("where", ()))


def line_of(text: str, where: Sequence[str]) -> int | None:
    """The line of the key, or of the innermost table or value around it that is written on a line of its own."""
    best, depth, table, seen = None, 0, list[str](), dict[str, int]()
    for number, line in enumerate(text.splitlines(), 1):
        found = _LINE.match(line)
        if not found:
            continue
        if found["table"]:
            path = table = split_key(found["table"])
            if found["open"] == "[[":
                seen[found["table"]] = seen.get(found["table"], -1) + 1
                path = table = [*table, str(seen[found["table"]])]
        else:
            path = table + split_key(found["entry"])
        shared = min(len(path), len(where))
        if shared > depth and path[:shared] == list(where[:shared]):
            best, depth = number, shared
    return best


def split_key(dotted: str) -> list[str]:
    """A TOML key's parts: `axes."lora.rank"` → axes, lora.rank."""
    return [part.strip().strip("\"'") for part in re.findall(r"\s*\"[^\"]*\"|\s*'[^']*'|[^.]+", dotted)]


def _keys(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    """What may stand in the table at `path`."""
    parts = iter(path)
    for part in parts:
        annotation = model.model_fields[part].annotation
        inner = [a for a in (annotation, *get_args(annotation)) if isinstance(a, type) and issubclass(a, BaseModel)]
        if not inner:
            return []
        model = inner[0]
        if get_origin(annotation) is not None:
            next(parts, None)  # the name of a stack, or the position of a claim
    return list(model.model_fields)
