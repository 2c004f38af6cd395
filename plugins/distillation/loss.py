"""What the student learns from: the true tokens, the teacher's predictions, and what it thinks in between."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import log
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, log_softmax

if TYPE_CHECKING:
    from effbench.plugin.technique import Batch

    from . import Distillation

_UNLEARNT = -100  # the label of a token that is given, not predicted

Loss = Callable[[nn.Module, "Batch"], Tensor]


def distilled(loss: Loss, options: "Distillation", teacher: nn.Module, *, causal: bool) -> Loss:
    """The loss with the teacher's parts; what other techniques made of the plain loss still happens inside."""
    wanted = {"output_hidden_states": options.hidden, "output_attentions": options.attention}
    asked: Any = {name: True for name, weight in wanted.items() if weight}

    def run(model: nn.Module, batch: "Batch") -> Tensor:
        with _seen(model) as outputs:
            total = options.hard * loss(model, batch | asked)
        student, inputs = outputs[-1], {name: batch[name] for name in batch if name != "labels" or not causal}
        with torch.no_grad():
            taught = teacher(**inputs, **asked)
        if options.soft:
            first, labels = (slice(-1), batch["labels"][:, 1:]) if causal else (slice(None), batch["labels"])
            each = divergence(student.logits[:, first], taught.logits[:, first], options)
            total = total + options.soft * options.temperature**2 * _mean(each, labels != _UNLEARNT)
        present = batch["attention_mask"]
        if options.hidden:
            total = total + options.hidden * hidden_distance(_states(student), _states(taught), present)
        if options.attention:
            total = total + options.attention * attention_distance(_attentions(student), _attentions(taught), present)
        return total

    return run


def divergence(student: Tensor, teacher: Tensor, options: "Distillation") -> Tensor:
    """By position, the divergence between the distributions of logits (…, V), both softened by the temperature."""
    ours, theirs = (log_softmax(logits.float() / options.temperature, -1) for logits in (student, teacher))
    if options.divergence == "forward":
        return _kl(theirs, ours)
    if options.divergence == "reverse":
        return _kl(ours, theirs)
    mixture = torch.logaddexp(theirs + log(options.beta), ours + log(1 - options.beta))
    return options.beta * _kl(theirs, mixture) + (1 - options.beta) * _kl(ours, mixture)


def hidden_distance(student: tuple[Tensor, ...], teacher: tuple[Tensor, ...], present: Tensor) -> Tensor:
    """1 - cosine between states (embeddings, then after each layer) at the same relative depth; embeddings left out."""
    pairs = list(_paired(student[1:], teacher[1:]))
    return torch.stack(
        [_mean(1 - cosine_similarity(ours.float(), theirs.float(), -1), present) for ours, theirs in pairs]
    ).mean()


def attention_distance(student: tuple[Tensor, ...], teacher: tuple[Tensor, ...], present: Tensor) -> Tensor:
    """Squared difference of attention weights (B, H, n, n), summed over keys, at the same relative depth.

    Squared as in TinyBERT (Jiao et al. 2019, arXiv 1909.10351): dropout makes zeros, of which a divergence has no logarithm.
    """
    pairs = list(_paired(student, teacher))
    each = [(ours.float() - theirs.float()).square().sum(-1).mean(1) for ours, theirs in pairs]
    return torch.stack([_mean(distance, present) for distance in each]).mean()


def _paired(student: tuple[Tensor, ...], teacher: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, Tensor]]:
    """Each of the student's layers with the teacher's at the same relative depth; the last with the last."""
    for number, ours in enumerate(student, start=1):
        yield ours, teacher[round(number * len(teacher) / len(student)) - 1]


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p‖q) of log-probabilities."""
    return (p.exp() * (p - q)).sum(-1)


def _mean(values: Tensor, where: Tensor) -> Tensor:
    """Mean over the positions that count, without asking the device how many there are."""
    weights = where.to(values.dtype)
    return (values * weights).sum() / weights.sum()


def _states(output: Any) -> tuple[Tensor, ...]:
    found: tuple[Tensor, ...] = output.get("hidden_states") or output["decoder_hidden_states"]
    return found


def _attentions(output: Any) -> tuple[Tensor, ...]:
    found: tuple[Tensor, ...] = output.get("attentions") or output["decoder_attentions"]
    return found


@contextmanager
def _seen(model: nn.Module) -> Iterator[list[Any]]:
    """What the model returns while the plain loss calls it."""
    outputs: list[Any] = []
    hook = model.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    try:
        yield outputs
    finally:
        hook.remove()
