"""How much each weight matters, by what calibration batches show. This module needs torch."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from effbench.plugin.technique import Batch

from .masks import rows


def size_by_input(model: nn.Module, layers: Mapping[str, Any], batches: Sequence[Batch]) -> dict[str, Tensor]:
    """|W| × ‖x‖₂ of the input it multiplies, (outputs, inputs); padding is left out by the batches' masks.

    A layer that no batch reaches has inputs of norm 0 and so no order: its weights count by their size alone.
    """
    squares = {name: torch.zeros(rows(layer).shape[1], device=layer.weight.device) for name, layer in layers.items()}
    seen: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        def add(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].detach().float()
            mask = seen["mask"]
            if x.shape[:2] == mask.shape:  # else, as in a cross-attention of another length, everything counts
                x = x[mask]
            squares[name] += x.flatten(0, -2).square().sum(0)

        return add

    hooks = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    try:
        with torch.no_grad(), evaluating(model):
            for batch in batches:
                seen["mask"] = batch["attention_mask"].bool()
                model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    return {
        name: rows(layer).abs().float() * (squares[name].sqrt() if squares[name].any() else 1.0)
        for name, layer in layers.items()
    }


def gradients(model: nn.Module, layers: Mapping[str, Any], batches: Sequence[Batch]) -> dict[str, Tensor]:
    """Of the batches' summed loss in the linear weights, (outputs, inputs); what requires a gradient is as before."""
    weights = {name: layer.weight for name, layer in layers.items()}
    required = {name: weight.requires_grad for name, weight in weights.items()}
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    try:
        for weight in weights.values():
            weight.requires_grad_(True)
        with evaluating(model), torch.enable_grad():
            for batch in batches:
                found = torch.autograd.grad(model(**batch).loss, list(weights.values()), allow_unused=True)
                for name, gradient in zip(weights, found, strict=True):
                    if gradient is not None:
                        total[name] += gradient
    finally:
        for name, weight in weights.items():
            weight.requires_grad_(required[name])
    return {name: rows(layers[name], gradient) for name, gradient in total.items()}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout, and afterwards as it was."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
