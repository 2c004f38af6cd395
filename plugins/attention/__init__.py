"""Other attention than softmax over all keys. Importing it needs no torch."""

from collections.abc import Callable

from effbench.plugin import Technique, hookimpl

from .sliding_window import SlidingWindow


@hookimpl
def register_techniques(register: Callable[[type[Technique]], None]) -> None:
    """Register each form of attention."""
    for technique in (SlidingWindow,):
        register(technique)
