"""PyTorch's dynamically quantized layer for models of any float type. This module needs torch.ao."""

from torch import Tensor, nn
from torch.ao.nn.quantized.dynamic import Linear


class Int8DynamicLinear(Linear):
    """Its kernel takes float32 alone; here it works in models of 16 bits and under autocast as well."""

    @classmethod
    def from_float(cls, mod: nn.Linear, use_precomputed_fake_quant: bool = False) -> "Int8DynamicLinear":
        """Called by `quantize_dynamic`."""
        if mod.bias is not None:
            mod.bias.data = mod.bias.data.float()
        layer: Int8DynamicLinear = super().from_float(mod, use_precomputed_fake_quant)  # type: ignore[no-untyped-call]  # torch's
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """In float32, and back."""
        y: Tensor = super().forward(x.float())  # type: ignore[no-untyped-call]  # torch's
        return y.to(x.dtype)
