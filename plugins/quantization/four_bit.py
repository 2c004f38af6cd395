"""bitsandbytes' 4-bit layer, made fit for being evaluated before it is trained, and stored after it was evaluated."""

from copy import copy
from typing import Any

from bitsandbytes.nn import Linear4bit
from torch import Tensor

_OUTPUTS_AT_ONCE = 32  # of the fused kernel


class NF4Linear(Linear4bit):  # type: ignore[misc]  # bitsandbytes is untyped
    """A Linear4bit that uses the fused kernel only when it is told to, and whose scales survive it.

    On CPUs with AVX512-BF16 bitsandbytes rearranges the weights of a layer as soon as it is evaluated, for a kernel that passes
    no gradient on, stays in use when training goes on, rounds the scales to bfloat16, and is an error for some sizes.
    """

    support_avx512bf16_for_cpu: bool

    def __init__(self, inputs: int, outputs: int, **options: Any) -> None:
        super().__init__(inputs, outputs, bias=False, quant_type="nf4", device="meta", **options)
        self._has_fused = getattr(self, "support_avx512bf16_for_cpu", False)  # unknown to older versions
        self.support_avx512bf16_for_cpu = False

    def fuse(self) -> None:
        """From now on multiply without unpacking first, where this CPU and this layer can."""
        self.support_avx512bf16_for_cpu = self._has_fused and self.out_features % _OUTPUTS_AT_ONCE == 0

    def forward(self, x: Tensor) -> Tensor:
        """As bitsandbytes does it; before it touches the scales they are put aside."""
        scales: Any = self.weight.quant_state
        if self.support_avx512bf16_for_cpu and not hasattr(scales, "exact"):
            scales.exact = copy(scales)
        y: Tensor = super().forward(x)
        return y

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)  # arranges the weights as they were
        if exact := getattr(self.weight.quant_state, "exact", None):
            self.weight.quant_state = self.quant_state = exact
            super()._save_to_state_dict(destination, prefix, keep_vars)
