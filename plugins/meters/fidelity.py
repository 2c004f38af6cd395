"""How far a stack's predictions are from those of the untouched model."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from effbench.plugin import Meter, Metric, Observation, Summary

if TYPE_CHECKING:
    from torch import Tensor

_TOKENS, _LOGITS = 4096, 2**28
"""At most so many tokens are compared, and logits held: a gigabyte where the vocabulary is large."""


class Fidelity(Meter):
    """Divergence from the untouched model's predictions on held-out prompts, after everything was timed, at each position.

    The untouched model is the loaded one before any technique and any training, of the suite's dtype. So it says what
    compression changed where nothing is trained, and what training changed as well where something is. Of a cell's prompts as
    many are taken as give 4,096 tokens (fewer for vocabularies beyond 65,536), one at least. Absent where the untouched model
    does not fit into memory beside the stack's, or has another vocabulary.
    """

    name: ClassVar = "fidelity"
    metrics: ClassVar = (
        Metric(
            "infer.kl_to_base_nats", "nats", "lower", "Mean Kullback-Leibler divergence of its predictions from the base's."
        ),
        Metric("infer.top1_agreement", "share", "higher", "Positions at which the most probable token is the base's."),
    )

    def probe(self, observation: Observation) -> Mapping[str, Summary]:
        """Run both models over the prompts once more."""
        if observation.inference is None or observation.prompt is None or observation.base_model is None:
            return {}
        import torch

        from effbench.worker import defaults

        inference, ids = observation.inference, observation.prompt
        vocabulary = observation.cell.facts.vocab
        ids = ids[: max(1, min(_TOKENS, _LOGITS // vocabulary) // ids.shape[1])]
        from .again import unchanged

        try:
            with torch.inference_mode(), unchanged(inference.model):
                # Row by row, and moved away at once: the base comes after, for every rank takes part in the first of the two.
                ours = [inference.logits(inference, row, torch.ones_like(row)).float().cpu() for row in ids.split(1)]
                base = defaults.inference(observation.base_model())
                theirs = [base.logits(base, row, torch.ones_like(row)).float().cpu() for row in ids.split(1)]
        except (MemoryError, torch.OutOfMemoryError):
            return {}
        if ours[0].shape != theirs[0].shape:
            return {}
        divergence, agreement = _compared(theirs, ours)
        return {
            "infer.kl_to_base_nats": Summary(median=divergence, unit="nats"),
            "infer.top1_agreement": Summary(median=agreement, unit="share"),
        }


def _compared(reference: "list[Tensor]", logits: "list[Tensor]") -> tuple[float, float]:
    """Mean KL(reference ‖ logits) in nats, and the share of equal most probable tokens, over all positions."""
    from torch.nn.functional import kl_div

    divergence, equal, positions = 0.0, 0, 0
    for ours, theirs in zip(logits, reference, strict=True):
        p, q = theirs.double().log_softmax(-1), ours.double().log_softmax(-1)
        divergence += float(kl_div(q, p, reduction="sum", log_target=True))
        equal += int((p.argmax(-1) == q.argmax(-1)).sum())
        positions += p.shape[0] * p.shape[1]
    return max(0.0, divergence / positions), equal / positions
