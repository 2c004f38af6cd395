"""The standard meters, one file each. Importing them, and listing their metrics, needs no torch."""

from collections.abc import Callable

from effbench.plugin import Meter, hookimpl

from .communication import Communication
from .compiling import Compiling
from .density import Density
from .energy import Energy
from .fidelity import Fidelity
from .flops import Flops
from .latency import Latency
from .loss import Loss
from .memory import Memory
from .size import Size
from .state import State
from .throughput import Throughput


@hookimpl
def register_meters(register: Callable[[type[Meter]], None]) -> None:
    """Register the standard meters."""
    standard = (Communication, Compiling, Density, Energy, Fidelity, Flops, Latency, Loss, Memory, Size, State, Throughput)
    for meter in standard:
        register(meter)
