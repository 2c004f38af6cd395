"""Movement pruning: scores that grow while training, and masks that follow them. This module needs torch."""

from dataclasses import replace
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from effbench.plugin import InputError, TrainStep
from effbench.plugin.layers import linear_layers

from .masking import Scope
from .masks import masks_of, rows

_RENEWALS = 20  # of the masks: ranking every weight in every step would cost as much as a small model's step
_RAMP = 2 / 3  # of the steps until the full sparsity; the rest trains what is left


class _Masked(nn.Module):
    """Used with zeros, trained as if there were none: the gradient reaches masked weights too (straight through)."""

    mask: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones_like(weight, dtype=torch.bool))

    def forward(self, weight: Tensor) -> Tensor:
        return weight - (weight * ~self.mask).detach()


def moving(step: TrainStep, sparsity: float, scope: Scope, steps: int) -> TrainStep:
    """A step that adds to the scores before each update, and renews the masks from time to time."""
    layers = {name: layer for name, layer in linear_layers(step.model).items() if layer.weight.requires_grad}
    if not layers:
        raise InputError("gradient_pruning: movement needs linear weights that train; an adapter's base is frozen")
    masked = {name: _Masked(layer.weight) for name, layer in layers.items()}
    weights = {name: layer.weight for name, layer in layers.items()}
    scores = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for name, layer in layers.items():
        parametrize.register_parametrization(layer, "weight", masked[name])
    update, number = step.update, count(1)
    every = max(1, round(_RAMP * steps / _RENEWALS))

    @torch.no_grad()
    def learn() -> None:
        for name, weight in weights.items():
            if weight.grad is not None:
                scores[name] -= weight * weight.grad
                weight.grad *= masked[name].mask  # a masked weight waits, as it was, to be let back

    @torch.no_grad()
    def renew(now: float) -> None:
        ranked = {name: rows(layers[name], score) for name, score in scores.items()}
        for name, mask in masks_of(ranked, sparsity * (1 - (1 - now) ** 3), scope).items():
            masked[name].mask.copy_(rows(layers[name], mask))

    def update_and_move(current: TrainStep) -> None:
        learn()
        update(current)
        done = next(number)
        now = min(1.0, done / max(1, round(_RAMP * steps)))
        if done % every == 0 or now == 1.0:
            renew(now)

    return replace(step, update=update_and_move)


def settle(model: nn.Module) -> None:
    """Make the masked weights the weights."""
    for module in list(model.modules()):
        chains: Any = module.parametrizations if parametrize.is_parametrized(module, "weight") else None
        if chains and isinstance(chains.weight[0], _Masked):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
