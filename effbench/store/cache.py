"""What takes seconds to make and is always the same, kept in the user's cache folder."""

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from effbench.plugin.errors import InputError
from effbench.store.store import write_atomic


def kept(name: str, made_by: bytes, make: Callable[[], Any]) -> Any:
    """What `make` gives (JSON), read from the cache where the same `made_by`, everything it depends on, has left it there."""
    file = folder() / f"{name}-{hashlib.sha256(made_by).hexdigest()[:16]}.json"
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none yet, or not what was written: made again
        content = make()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, json.dumps(content).encode())
    except (OSError, InputError) as error:  # slower next time, and nothing else
        logging.getLogger(__name__).warning("cache %s is not written: %s", file, error.__cause__ or error)
    return content


def folder() -> Path:
    """The user's cache folder."""
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("effbench"))
