"""Attention of one rank's queries to the keys of all, and a training step on its part of each sequence. Needs torch."""

from collections.abc import Callable
from itertools import count
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.masking_utils import sdpa_mask

from effbench.plugin import InputError, TrainStep
from effbench.plugin.technique import Batch

from .styles import Move

Loss = Callable[[nn.Module, Batch], Tensor]
ForwardBackward = Callable[[TrainStep, Batch], Tensor]

_numbers = count()
_IGNORED = -100  # the label that transformers' losses leave out
_BLOCK = 512  # queries that share one mask: its size grows with the length, not with its square
_GATHER = Move(Shard(2), Replicate(), Partial())
"""Keys or values (B, KV, n, d) of all ranks; backward each rank gets the sum of what all found for its own."""
_UNKNOWN = ("position_bias", "softcap", "s_aux")  # what some models add to the scores


class Sequences:
    """Which part of the sequences is this rank's, while a step is taken."""

    def __init__(self, mesh: DeviceMesh) -> None:
        self.mesh, self.ranks, self.rank = mesh, mesh.size(), mesh.get_local_rank()
        self.padding: Tensor | None = None
        """(B, n) of the whole sequences, True where a token is; None where all are."""
        self.length = 0
        """Of the whole sequences; 0 while none is split, and attention is the model's own."""

    def positions(self, rank: int) -> list[range]:
        """A rank's two chunks: the earlier ones attend to few keys, the later ones to many."""
        size = self.length // (2 * self.ranks)
        return [range(size * chunk, size * (chunk + 1)) for chunk in (rank, 2 * self.ranks - 1 - rank)]

    def part(self, tensor: Tensor) -> Tensor:
        """This rank's positions of (B, n)."""
        return torch.cat([tensor[:, run.start : run.stop] for run in self.positions(self.rank)], dim=1)

    def gathered(self, tensor: Tensor) -> Tensor:
        """All positions in order, of (B, KV, n / ranks, d) here."""
        chunks = _GATHER(tensor, self.mesh).chunk(2 * self.ranks, dim=2)  # each rank's earlier and later one
        return torch.cat([*chunks[::2], *reversed(chunks[1::2])], dim=2)


def install(model: nn.Module, sequences: Sequences) -> None:
    """Make every attention layer look beyond this rank's part. The name it is registered under is this model's alone."""
    inner: Any = next((module for module in model.modules() if isinstance(module, PreTrainedModel)), None)
    if inner is None or inner.loss_function is not ForCausalLMLoss:
        raise InputError("context_parallel needs a transformers model with the usual loss over next tokens")
    key = f"effbench-context_parallel-{next(_numbers)}"
    AttentionInterface.register(key, _attention(sequences))
    AttentionMaskInterface.register(key, lambda **given: None if sequences.length else sdpa_mask(**given))
    inner.set_attn_implementation(key)


def parted(loss: Loss, sequences: Sequences) -> Loss:
    """The loss over this rank's part, divided by the number of all ranks' tokens, so that the ranks' sum is the mean."""

    def part_of_loss(model: nn.Module, batch: Batch) -> Tensor:
        mask, labels = batch["attention_mask"].bool(), batch["labels"]
        sequences.length, sequences.padding = labels.shape[1], None if mask.all() else mask
        targets = F.pad(labels[:, 1:], (0, 1), value=_IGNORED)  # shifted before they are cut: the next token may be elsewhere
        positions = torch.arange(labels.shape[1], device=labels.device).expand_as(labels)
        own = {name: sequences.part(tensor) for name, tensor in batch.items()}
        own |= {"position_ids": sequences.part(positions), "shift_labels": sequences.part(targets)}
        return loss(model, own | {"num_items_in_batch": (targets != _IGNORED).sum()})

    return part_of_loss


def summed(forward_backward: ForwardBackward, sequences: Sequences) -> ForwardBackward:
    """Gradients and loss, added up over the ranks; gradients of earlier passes are left as they are."""

    def all_parts(step: TrainStep, batch: Batch) -> Tensor:
        # The optimizer's, because a model that is sharded shows others while a layer of it is gathered.
        parameters = [parameter for group in step.optimizer.param_groups for parameter in group["params"]]
        earlier = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            parameter.grad = None
        loss = forward_backward(step, batch)
        sequences.length = 0  # not before: checkpointed layers run again in the backward pass
        tensors = [_local(parameter.grad) for parameter in parameters if parameter.grad is not None]
        group = sequences.mesh.get_group()
        for work in [dist.all_reduce(tensor, group=group, async_op=True) for tensor in (*tensors, loss)]:
            work.wait()
        for parameter, before in zip(parameters, earlier, strict=True):
            if before is not None:
                parameter.grad = before if parameter.grad is None else before + parameter.grad
        return loss

    return all_parts


def _local(gradient: Tensor) -> Tensor:
    return gradient.to_local() if isinstance(gradient, DTensor) else gradient


def _attention(sequences: Sequences) -> Callable[..., tuple[Tensor, None]]:
    """Attention as transformers calls it."""

    def attention(  # noqa: PLR0913, PLR0917 - transformers' signature
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        sliding_window: int | None = None,
        **others: Any,
    ) -> tuple[Tensor, None]:
        if not sequences.length:
            window = {} if sliding_window is None else {"sliding_window": sliding_window}
            return sdpa_attention_forward(  # type: ignore[no-any-return]  # transformers is untyped here
                module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **window, **others
            )
        if unknown := next((name for name in _UNKNOWN if others.get(name) is not None), None):
            raise InputError(f"context_parallel: this model adds a {unknown} to its attention scores")
        key, value = sequences.gathered(key), sequences.gathered(value)
        runs = sequences.positions(sequences.rank)
        blocks = [run[start : start + _BLOCK] for run in runs for start in range(0, len(run), _BLOCK)]
        found, done = [], 0
        for block in blocks:
            first = 0 if sliding_window is None else max(0, block.start - sliding_window + 1)
            queries, done = query[:, :, done : done + len(block)], done + len(block)
            found.append(
                F.scaled_dot_product_attention(
                    queries,
                    key[:, :, first : block.stop],
                    value[:, :, first : block.stop],
                    _seen(block, first, sliding_window, sequences.padding, query.device),
                    dropout,
                    scale=scaling,
                    enable_gqa=query.shape[1] != key.shape[1],
                )
            )
        return torch.cat(found, dim=2).transpose(1, 2), None

    return attention


def _seen(block: range, first: int, window: int | None, padding: Tensor | None, device: torch.device) -> Tensor:
    """Which keys from `first` to the block's end each query of the block may see."""
    queries = torch.arange(block.start, block.stop, device=device)[:, None]
    keys = torch.arange(first, block.stop, device=device)
    seen = keys <= queries
    if window is not None:
        seen &= keys > queries - window
    if padding is None:
        return seen
    # A padded query sees itself, so that softmax has something to divide by.
    return (seen & padding[:, None, None, first : block.stop]) | (keys == queries)
