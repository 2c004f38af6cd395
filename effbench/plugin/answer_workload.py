"""Sequences with answers at known places: the common part of every workload that asks something of a whole input."""

import hashlib
import random
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from effbench.plugin.cell import Cell
from effbench.plugin.model import Tokenizer
from effbench.plugin.transformers_source import ENCODER_DECODERS
from effbench.plugin.workload import HeldOut, Quality, Workload, weighted_mean

if TYPE_CHECKING:
    from torch import Tensor

    from effbench.plugin.technique import Batch

PADDING, SEPARATOR, MASK = 0, 1, 2
"""Tokens that mean the same in every such workload."""
_UNLEARNT = -100  # the label that transformers' losses leave out
_TOKENS_AT_ONCE = 16_384


class Sample(NamedTuple):
    """A sequence in which every token is one byte, whatever the model's tokenizer."""

    name: str
    tokens: bytes
    """With the answers in their places."""
    answers: tuple[int, ...]
    """These places, none the first: a causal model answers one place earlier."""


class Samples(NamedTuple):
    """For training, for choosing settings, and for the board; no sequence is in two of them."""

    train: list[Sample]
    validation: list[Sample]
    test: list[Sample]


@dataclass(frozen=True)
class _Padded:
    """Samples as one batch."""

    ids: "Tensor"
    """What the model sees: of a model that is not causal, the answers are masked."""
    mask: "Tensor"
    labels: "Tensor"
    """The answers in their places, -100 elsewhere."""


class AnswerWorkload(Workload):
    """Training on the answers alone, accuracy over them.

    A causal model predicts each answer from what stands before it; any other one sees a mask in the answer's place.
    """

    @abstractmethod
    def read(self) -> Samples:
        """All samples, the same at each call."""

    @property
    @abstractmethod
    def length(self) -> int:
        """Tokens of the longest sample."""

    @cached_property
    def samples(self) -> Samples:
        """What `read` gave, read once."""
        return self.read()

    @cached_property
    def constant(self) -> int:
        """The best constant answer, as far as the training split tells: its most frequent one."""
        counts = Counter(sample.tokens[place] for sample in self.samples.train for place in sample.answers)
        return max(sorted(counts), key=lambda answer: counts[answer])

    def unsupported(self, cell: Cell) -> str | None:
        """A sample is never cut: what it asks could stand in what is lost."""
        if cell.seq_len < self.length:
            return f"workload {self.label} needs a seq_len of at least {self.length}, not {cell.seq_len}"
        if cell.facts.model_type in ENCODER_DECODERS:
            return f"workload {self.label} needs a decoder or an encoder, {cell.facts.model_type} is both"
        if cell.facts.vocab < 256:
            return f"workload {self.label} needs a vocabulary of 256, the model has {cell.facts.vocab}"
        return None

    def data_hash(self) -> str:
        """Hash of all three splits."""
        digest = hashlib.sha256()
        for sample in (sample for part in self.samples for sample in part):
            digest.update(f"{sample.name}\0{sample.answers}\0".encode() + sample.tokens)
        return digest.hexdigest()[:16]

    def training_batches(self, tokenizer: Tokenizer, cell: Cell, count: int, seed: int) -> "list[Batch]":
        """Samples in a new order for each epoch, each padded to seq_len."""
        endless = self._shuffled(seed)
        padded = [_padded(list(islice(endless, cell.batch_size)), cell, cell.seq_len) for _ in range(count)]
        return [{"input_ids": batch.ids, "attention_mask": batch.mask, "labels": batch.labels} for batch in padded]

    def _shuffled(self, seed: int) -> Iterator[Sample]:
        rng = random.Random(seed)  # noqa: S311 - an order, not a secret
        while True:
            yield from rng.sample(self.samples.train, len(self.samples.train))

    def prompts(self, tokenizer: Tokenizer, cell: Cell) -> "Tensor":
        """Test samples one after another, the separator between them, cut into rows; repeated where there are not enough."""
        import torch

        needed = cell.batch_size * cell.seq_len
        tokens = bytearray()
        while len(tokens) < needed:
            for sample in self.samples.test:
                tokens += sample.tokens + bytes([SEPARATOR])
                if len(tokens) >= needed:
                    break
        return torch.tensor(list(tokens[:needed])).view(cell.batch_size, cell.seq_len)

    def quality(
        self, logits: "Callable[[Tensor, Tensor], Tensor]", tokenizer: Tokenizer, cell: Cell, split: HeldOut = "test"
    ) -> Quality:
        """The share of right answers among all tokens that could be predicted, beside that of always the same answer."""
        samples: list[Sample] = getattr(self.samples, split)[: cell.quality_documents]
        hits = [0] * len(samples)
        for indices in _similar_lengths(samples):
            right = _right(logits, [samples[index] for index in indices], cell)
            for index, count in zip(indices, right, strict=True):
                hits[index] = count
        asked = [float(len(sample.answers)) for sample in samples]
        scores = [hit / of for hit, of in zip(hits, asked, strict=True)]
        constant = [sum(s.tokens[place] == self.constant for place in s.answers) / len(s.answers) for s in samples]
        return Quality(
            scores={"accuracy": weighted_mean(scores, asked)},
            per_sample={"accuracy": scores},
            weights=asked,
            names=[sample.name for sample in samples],
            chance={"accuracy": constant},
        )


def answered(name: str, question: bytes, answer: int) -> Sample:
    """A sample of one answer, which stands at the end, behind a separator."""
    return Sample(name, question + bytes([SEPARATOR, answer]), (len(question) + 1,))


def _padded(samples: Sequence[Sample], cell: Cell, width: int) -> _Padded:
    import torch

    ids = torch.tensor([list(sample.tokens.ljust(width, bytes([PADDING]))) for sample in samples])
    labels = torch.full_like(ids, _UNLEARNT)
    for row, sample in enumerate(samples):
        places = list(sample.answers)
        labels[row, places] = ids[row, places]
    mask = (torch.arange(width) < torch.tensor([len(sample.tokens) for sample in samples])[:, None]).long()
    return _Padded(ids if cell.facts.causal else ids.masked_fill(labels != _UNLEARNT, MASK), mask, labels)


def _similar_lengths(samples: Sequence[Sample]) -> Iterator[list[int]]:
    """Indices of samples to evaluate together, longest first so that little is padding."""
    order = sorted(range(len(samples)), key=lambda index: -len(samples[index].tokens))
    while order:
        count = max(1, _TOKENS_AT_ONCE // len(samples[order[0]].tokens))
        yield order[:count]
        order = order[count:]


def _right(logits: "Callable[[Tensor, Tensor], Tensor]", samples: Sequence[Sample], cell: Cell) -> list[int]:
    """How many answers of each sample are the most probable token of all."""
    batch = _padded(samples, cell, max(len(sample.tokens) for sample in samples))
    guesses = logits(batch.ids, batch.mask).argmax(-1)
    if cell.facts.causal:
        guesses = guesses.roll(1, dims=1)  # the guess for a place is made one place earlier
    right: list[int] = (guesses == batch.labels).sum(1).tolist()
    return right
