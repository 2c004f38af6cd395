"""Other attention than softmax over all keys. Importing it needs no torch."""

from collections.abc import Callable

from effbench.plugin import Technique, hookimpl

from .linformer import Linformer
from .performer import Performer
from .reformer import Reformer
from .sliding_window import SlidingWindow


@hookimpl
def register_techniques(register: Callable[[type[Technique]], None]) -> None:
    """Register each form of attention."""
    for technique in (Linformer, Performer, Reformer, SlidingWindow):
        register(technique)
