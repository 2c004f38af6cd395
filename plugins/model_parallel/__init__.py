"""A model's matrices, or its sequences, split over ranks."""

from collections.abc import Callable

from effbench.plugin import Technique, hookimpl

from .context_parallel import ContextParallel
from .tensor_parallel import TensorParallel


@hookimpl
def register_techniques(register: "Callable[[type[Technique]], None]") -> None:
    """Register both ways of splitting a model."""
    register(TensorParallel)
    register(ContextParallel)
