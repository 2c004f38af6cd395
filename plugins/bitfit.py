"""BitFit: training biases alone."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from effbench.plugin import Context, InputError, Technique, hookimpl

if TYPE_CHECKING:
    from torch import nn


class BitFit(Technique):
    """Train the biases and nothing else (Ben Zaken et al. 2021, arXiv 2106.10199).

    About a thousandth of the parameters: tiny optimizer state and checkpoints, and no gradient of any weight matrix, while the
    backward pass still crosses the whole model. It does not help where the task is far from what the model knows. Llama, T5 and
    most newer models have no biases: with `add_missing` each linear layer but the head then gets one that starts at zero, which
    costs inference one addition a layer.
    """

    name: ClassVar = "bitfit"
    family: ClassVar = "peft"
    sets: ClassVar = ("trainable parameters",)

    add_missing: bool = Field(default=True, description="in a model without any bias, give linear layers one that is zero")

    def apply(self, model: "nn.Module", ctx: Context) -> "nn.Module":
        """Freeze all but the biases, of linear layers and of norms."""
        model.requires_grad_(False)
        biases = [parameter for name, parameter in model.named_parameters() if name.rpartition(".")[2] == "bias"]
        if not biases and self.add_missing:
            biases = _add_biases(model)
        if not biases:
            raise InputError(f"bitfit: {type(model).__name__} has no bias to train: set add_missing")
        for bias in biases:
            bias.requires_grad_(True)
        return model


def _add_biases(model: "nn.Module") -> "list[nn.Parameter]":
    import torch
    from torch import nn

    getter: Any = getattr(model, "get_output_embeddings", lambda: None)
    head, added = getter(), []
    usual = next(p.dtype for p in model.parameters() if p.is_floating_point())
    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not head:
            dtype = module.weight.dtype if module.weight.is_floating_point() else usual  # integers where it is quantized
            zeros = torch.zeros(module.out_features, dtype=dtype, device=module.weight.device)
            module.bias = nn.Parameter(zeros)
            added.append(module.bias)
    return added


@hookimpl
def register_techniques(register: "Callable[[type[Technique]], None]") -> None:
    """Register BitFit."""
    register(BitFit)
