"""Fewer bits: weights, activations, the KV cache. Importing it needs no torch."""

from collections.abc import Callable

from effbench.plugin import Technique, hookimpl

from .bitnet import Binary, Ternary
from .casts import BFloat16, Float16
from .fp8 import Fp8
from .fp8_training import Fp8Training
from .int4 import Int4
from .int8_dynamic import Int8Dynamic
from .int8_weight_only import Int8WeightOnly
from .kv_quant import KVQuant
from .nf4 import NF4


@hookimpl
def register_techniques(register: Callable[[type[Technique]], None]) -> None:
    """Register one technique for each width."""
    quantizations = (BFloat16, Binary, Float16, Fp8, Int4, Int8Dynamic, Int8WeightOnly, KVQuant, NF4, Ternary)
    for technique in (*quantizations, Fp8Training):
        register(technique)
