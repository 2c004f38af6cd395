"""Why there is no estimate, in one line that names the technique that stands in the way."""

import traceback
from collections.abc import Sequence

from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)

from effbench.plugin.technique import Technique

_NEEDS_CONTENT = (DataDependentOutputException, DynamicOutputShapeException)
_NO_FAKE_KERNEL = (UnsupportedOperatorException, UnsupportedFakeTensorException)


class NothingToTrainError(Exception):
    """The stack freezes everything."""


def reason(error: BaseException, techniques: Sequence[Technique]) -> str:
    """What happened, and in whose code: the innermost technique's that the failed call went through."""
    if isinstance(error, NothingToTrainError):
        return str(error)
    return f"{_culprit(error, techniques)}{_what(error)}"


def _what(error: BaseException) -> str:
    first = str(error).strip().partition("\n")[0]
    if isinstance(error, _NEEDS_CONTENT):
        return f"needs the content of tensors, and fake ones have only shapes ({first})"
    if isinstance(error, _NO_FAKE_KERNEL):
        return f"uses an operator that does not know its result's shape without running ({first})"
    return f"cannot run on fake tensors ({type(error).__name__}: {first})"


def _culprit(error: BaseException, techniques: Sequence[Technique]) -> str:
    modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    for module in reversed(modules):
        for technique in techniques:
            if _plugin(module) == _plugin(type(technique).__module__):
                return f"{technique.name}: "
    return ""


def _plugin(module: str) -> str:
    """The package, or the file, that a plugin is: all that lies deeper is part of it."""
    return ".".join(module.split(".")[:2])
