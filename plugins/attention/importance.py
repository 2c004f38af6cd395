"""How much the loss depends on each head. This module needs torch."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from effbench.plugin.technique import Batch

from .projections import Projections


def prune_heads(layers: Sequence[Projections], importance: Sequence[Tensor], share: float) -> None:
    """Remove the least important share of all key heads, with the query heads that share them, but the last of no layer.

    The config keeps the counts it had: layers now differ, and some models compute a head's size from them.
    """
    scores = torch.cat(list(importance))
    places = [(layer, head) for layer, of_layer in enumerate(importance) for head in range(len(of_layer))]
    kept = [set(range(len(of_layer))) for of_layer in importance]
    left = round(share * len(places))
    for index in scores.argsort(stable=True).tolist():
        layer, head = places[index]
        if left and len(kept[layer]) > 1:
            kept[layer].remove(head)
            left -= 1
    for projections, heads in zip(layers, kept, strict=True):
        if len(heads) < projections.kv_heads:
            projections.keep(torch.tensor(sorted(heads)))


def head_importance(model: nn.Module, layers: Sequence[Projections], batches: Sequence[Batch]) -> list[Tensor]:
    """For each layer, the score of each key head with its query heads (KV): how much the loss would change with a gate on them.

    A gate multiplies what a query head gives, and is 1; the score is the mean size, over sequences, of the loss's derivative by
    it. As in the paper, a layer's scores are divided by their norm.
    """
    totals = [torch.zeros_like(_gates(layer, 1).flatten()) for layer in layers]
    for batch in batches:
        gates = [_gates(layer, len(batch["input_ids"])).requires_grad_() for layer in layers]
        with ExitStack() as hooks:
            for layer, gate in zip(layers, gates, strict=True):
                handle = layer.output.register_forward_pre_hook(_gated(gate, layer.channels))
                hooks.callback(handle.remove)
            loss = model(**batch).loss
        derivatives = torch.autograd.grad(loss, gates)
        totals = [total + derivative.abs().sum(0).flatten() for total, derivative in zip(totals, derivatives, strict=True)]
    return [
        (total / total.norm().clamp(min=1e-12)).view(layer.kv_heads, -1).sum(1)
        for total, layer in zip(totals, layers, strict=True)
    ]


def agreed(importance: list[Tensor], world_size: int) -> list[Tensor]:
    """Summed over ranks, which score different batches but must remove the same heads."""
    if world_size > 1:
        for scores in importance:
            dist.all_reduce(scores)
    return importance


def _gates(layer: Projections, sequences: int) -> Tensor:
    return torch.ones(sequences, 1, layer.heads, 1, device=layer.output.weight.device)


def _gated(gate: Tensor, channels: int) -> Any:
    def before_output(_: nn.Module, args: tuple[Tensor, ...]) -> Tensor:
        heads: Tensor = args[0].unflatten(-1, (-1, channels))
        return (heads * gate.to(heads.dtype)).flatten(-2)

    return before_output
