"""The batch is shared out among ranks, which agree on gradients; what else they share differs. Importing it needs no torch."""

from collections.abc import Callable

from effbench.plugin import Technique, hookimpl

from .ddp import DDP
from .fsdp import FSDP
from .zero1 import ZeRO1


@hookimpl
def register_techniques(register: Callable[[type[Technique]], None]) -> None:
    """Register one technique for each way to share."""
    for technique in (DDP, FSDP, ZeRO1):
        register(technique)
