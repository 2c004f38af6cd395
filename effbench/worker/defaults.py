"""How an untouched model is trained and used; what techniques change."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from effbench.plugin.cell import Cell
from effbench.plugin.technique import Batch, Inference, TrainStep

_WARMUP_SHARE = 0.1  # of the steps, the learning rate rises linearly; then it falls linearly to a tenth


def train_step(model: nn.Module, trainable: Sequence[nn.Parameter], cell: Cell) -> TrainStep:
    """AdamW with PyTorch's defaults on everything that requires a gradient; on a rank of several, that may be nothing."""
    optimizer = torch.optim.AdamW([{"params": list(trainable)}], lr=cell.lr)
    warmup = max(1, round(_WARMUP_SHARE * cell.steps))

    def factor(step: int) -> float:
        return min((step + 1) / warmup, max(0.1, 1 - 0.9 * (step - warmup) / max(1, cell.steps - warmup)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    return TrainStep(model, optimizer, schedule, _loss, _forward_backward, _update)


def inference(model: nn.Module, *, causal: bool = True) -> Inference:
    """The model's own forward pass and KV cache, as transformers defines them.

    A model that is not causal has no cache and no next token: its prefill is its whole forward pass, and nothing decodes.
    """
    return Inference(model, _logits, _prefill, _decode) if causal else Inference(model, _logits, _forward, _no_decode)


def _loss(model: nn.Module, batch: Batch) -> Tensor:
    loss: Tensor = model(**batch).loss
    return loss


def _forward_backward(step: TrainStep, batch: Batch) -> Tensor:
    loss = step.loss(step.model, batch)
    loss.backward()
    return loss.detach()


def _update(step: TrainStep) -> None:
    step.optimizer.step()
    if step.schedule:
        step.schedule.step()
    step.optimizer.zero_grad()


def _logits(current: Inference, ids: Tensor, mask: Tensor) -> Tensor:
    # An encoder-decoder gives its decoder the labels, one place later.
    two_stacks = getattr(getattr(current.model, "config", None), "is_encoder_decoder", False)
    labels = {"labels": ids} if two_stacks else {}
    logits: Tensor = current.model(input_ids=ids, attention_mask=mask, use_cache=False, **labels).logits
    return logits


def _prefill(current: Inference, ids: Tensor, mask: Tensor) -> tuple[Tensor, Any]:
    output = current.model(input_ids=ids, attention_mask=mask, use_cache=True, logits_to_keep=1)
    return output.logits[:, -1], output.past_key_values


def _forward(current: Inference, ids: Tensor, mask: Tensor) -> tuple[Tensor, Any]:
    return current.logits(current, ids, mask)[:, -1], None


def _no_decode(current: Inference, ids: Tensor, cache: Any) -> tuple[Tensor, Any]:
    raise TypeError(f"{type(current.model).__name__} is not causal: it has no decoding step")


def _decode(current: Inference, ids: Tensor, cache: Any) -> tuple[Tensor, Any]:
    output = current.model(input_ids=ids, past_key_values=cache, use_cache=True)
    return output.logits[:, -1], output.past_key_values
