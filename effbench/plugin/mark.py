"""The mark that a generated file carries: a digest of what it shows.

Plots and Parquet files of the same data differ in bytes between versions of the libraries that write them. Their marks say
whether two show the same. Text needs none, and none is looked for in it: a record could have put it there.
"""

import hashlib
import json
import re
from typing import Any

MARKED = (".svg", ".png", ".parquet")
"""Ends of the names of files that carry one."""
_MARK = re.compile(rb"effbench sha256:[0-9a-f]{64}")


def mark_of(data: Any) -> str:
    """The mark of plain data (whatever JSON can hold), to be written uncompressed into the file."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=str)
    return f"effbench sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def shows_the_same(name: str, old: bytes, new: bytes) -> bool:
    """Whether two files of this name carry the same marks; without any, whether their bytes are equal."""
    marks = sorted(_MARK.findall(new)) if name.endswith(MARKED) else []
    return sorted(_MARK.findall(old)) == marks if marks else old == new
