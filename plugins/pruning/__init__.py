"""Fewer weights: zeros in place of some, or smaller layers. Importing it needs no torch."""

from collections.abc import Callable

from effbench.plugin import Technique, hookimpl

from .gradient import GradientPruning
from .magnitude import MagnitudePruning
from .semi_structured import SemiStructured
from .structured import StructuredPruning
from .wanda import Wanda


@hookimpl
def register_techniques(register: Callable[[type[Technique]], None]) -> None:
    """Register one technique for each way to choose what goes."""
    for technique in (GradientPruning, MagnitudePruning, SemiStructured, StructuredPruning, Wanda):
        register(technique)
