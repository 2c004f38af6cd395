"""Taking channels, heads and layers out of transformers models. This module needs torch.

No library does it: the dependency graph of torch-pruning 1.6.1 does not come to an end on a Llama of two layers (transformers
5.23), and does not know GPT-2's layers.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from transformers.pytorch_utils import Conv1D

from effbench.plugin import InputError
from effbench.plugin.layers import layer_stacks, linear_layers
from effbench.plugin.technique import Batch

from ..attention.importance import head_importance
from ..attention.projections import projections_of
from .masks import rows
from .scores import evaluating, gradients

_INNER_SIZES = ("intermediate_size", "n_inner", "d_ff", "ffn_dim")
_DEPTHS = ("num_hidden_layers", "num_decoder_layers")


class FeedForward(NamedTuple):
    """The projections around one layer's feed-forward channels."""

    into: list[str]
    """Names of those whose outputs are the channels: one, or a gate and its partner."""
    out_of: str
    """Name of the one whose inputs they are."""


def narrower(model: Any, share: float, multiple_of: int, batches: Sequence[Batch]) -> nn.Module:
    """Remove the least important feed-forward channels, the same number from every layer."""
    layers, config = linear_layers(model), _config(model)
    size = _inner_size(config)
    blocks = feed_forwards(layers, config.hidden_size, size)
    if not blocks:
        raise InputError(f"structured_pruning: no feed-forward layers of {size} channels in {type(model).__name__}")
    kept = -(-round((1 - share) * size) // multiple_of) * multiple_of
    if kept >= size:
        raise InputError(f"structured_pruning: share {share} of {size} channels in steps of {multiple_of} removes none")
    chosen = [name for block in blocks for name in (*block.into, block.out_of)]
    found = gradients(model, {name: layers[name] for name in chosen}, batches)
    for block in blocks:
        importance = _by_row(layers, found, block.out_of, dim=0)
        for name in block.into:
            importance += _by_row(layers, found, name, dim=1)
        channels = importance.abs().topk(kept).indices.sort().values
        for name in block.into:
            _keep_outputs(layers[name], channels)
        _keep_inputs(layers[block.out_of], channels)
    for key in _INNER_SIZES:
        if getattr(config, key, None) is not None or (key == "n_inner" and hasattr(config, key)):
            setattr(config, key, kept)
    return model  # type: ignore[no-any-return]  # Any, for what transformers' models have beyond nn.Module


def feed_forwards(layers: dict[str, Any], hidden: int, inner: int) -> list[FeedForward]:
    """Found by their sizes: from hidden to inner and back, in one transformer layer, which its number in the name tells."""
    into: dict[str, list[str]] = defaultdict(list)
    out_of: dict[str, str] = {}
    for name, layer in layers.items():
        outputs, inputs = rows(layer).shape
        if (outputs, inputs) == (inner, hidden):
            into[_block(name)].append(name)
        elif (outputs, inputs) == (hidden, inner):
            out_of[_block(name)] = name
    return [FeedForward(into[block], out_of[block]) for block in out_of if into[block]]


def with_fewer_heads(model: nn.Module, share: float, batches: Sequence[Batch]) -> nn.Module:
    """Remove the least important key heads with the query heads that share them, the same number from every layer."""
    layers = projections_of(model, "structured_pruning")
    for projections, scores in zip(layers, head_importance(model, layers, batches), strict=True):
        gone = int(share * projections.kv_heads)
        if not gone:
            raise InputError(f"structured_pruning: share {share} of {projections.kv_heads} key heads is less than one")
        projections.keep(scores.topk(projections.kv_heads - gone).indices.sort().values)
    return model


def without_layers(model: Any, share: float, batches: Sequence[Batch]) -> nn.Module:
    """Remove the layers that change their input least, from every stack of layers the model has."""
    config, removed = _config(model), 0
    for stack in (stack for stack in layer_stacks(model) if linear_layers(stack)):
        count = int(share * len(stack))
        influence = torch.tensor(_influences(model, stack, batches)[1:])  # the first stays: in T5 it holds the positions
        gone = {1 + int(index) for index in influence.topk(min(count, len(influence)), largest=False).indices}
        kept = [number for number in range(len(stack)) if number not in gone]
        _keep_layers(stack, kept)
        removed += len(gone)
        if getattr(config, "layer_types", None):
            config.layer_types = [config.layer_types[number] for number in kept]
        for key in _DEPTHS:
            if hasattr(config, key):
                setattr(config, key, len(kept))
    if not removed:
        raise InputError(f"structured_pruning: share {share} of {config.num_hidden_layers} layers is less than one")
    return model  # type: ignore[no-any-return]  # see above


def _config(model: Any) -> Any:
    config = getattr(model, "config", None)
    if config is None:
        raise InputError("structured_pruning: only a transformers model says how it is built; list it before what wraps it")
    return config


def _inner_size(config: Any) -> int:
    for key in _INNER_SIZES:
        if size := getattr(config, key, None):
            return int(size)
    return 4 * int(config.hidden_size)  # GPT-2's n_inner, where it says nothing


def _block(name: str) -> str:
    """`model.layers.3.mlp.up_proj` → `model.layers.3`."""
    parts = name.split(".")
    first = next((place for place, part in enumerate(parts) if part.isdigit()), 0)
    return ".".join(parts[: first + 1])


def _by_row(layers: dict[str, Any], found: dict[str, Tensor], name: str, dim: int) -> Tensor:
    """Σ weight × gradient over the other dimension: how the loss changes without a channel, to first order."""
    return (rows(layers[name]) * found[name]).sum(dim)


def _keep_outputs(layer: Any, channels: Tensor) -> None:
    _replace_weight(layer, rows(layer)[channels])
    if layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias.detach()[channels], requires_grad=layer.bias.requires_grad)


def _keep_inputs(layer: Any, channels: Tensor) -> None:
    _replace_weight(layer, rows(layer)[:, channels])


def _replace_weight(layer: Any, weight: Tensor) -> None:
    outputs, inputs = weight.shape
    if isinstance(layer, Conv1D):
        layer.nf, layer.nx = outputs, inputs
        weight = weight.t()
    else:
        layer.out_features, layer.in_features = outputs, inputs
    layer.weight = nn.Parameter(weight.contiguous(), requires_grad=layer.weight.requires_grad)


def _influences(model: nn.Module, stack: nn.ModuleList, batches: Sequence[Batch]) -> list[float]:
    """1 - mean cosine similarity of each layer's input and output over all tokens: training batches have no padding."""
    sums = [0.0] * len(stack)

    def watch(number: int) -> Any:
        def add(_: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
            before = args[0] if args else keywords["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            sums[number] += float((1 - cosine_similarity(before.float(), after.float(), dim=-1)).mean())

        return add

    hooks = [layer.register_forward_hook(watch(number), with_kwargs=True) for number, layer in enumerate(stack)]
    try:
        with torch.no_grad(), evaluating(model):
            for batch in batches:
                model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    return sums


def _keep_layers(stack: nn.ModuleList, kept: Sequence[int]) -> None:
    layers = [stack[number] for number in kept]
    del stack[:]
    for number, layer in enumerate(layers):
        stack.append(layer)
        for module in layer.modules():
            if hasattr(module, "layer_idx"):  # the place of its keys and values in the cache
                module.layer_idx = number  # type: ignore[assignment]  # a plain attribute
