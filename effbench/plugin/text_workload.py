"""Language modelling on documents: the common part of every workload that is text."""

import hashlib
import math
import random
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING

from effbench.plugin.cell import Cell
from effbench.plugin.errors import InputError
from effbench.plugin.model import Tokenizer
from effbench.plugin.workload import HeldOut, Quality, Workload
from effbench.reference.texts import Document, Splits, data_hash

if TYPE_CHECKING:
    from torch import Tensor

    from effbench.plugin.technique import Batch

_UNLEARNT = -100  # the label that transformers' losses leave out
_PASSAGE_CHARS = 2000
_TOKENS_AT_ONCE = 4096  # evaluation batches: enough to be quick
_LOGITS_AT_ONCE = 2**26  # and small enough for any memory, however large the vocabulary


class TextWorkload(Workload):
    """Training on whole streams of documents, quality in bits per byte over held-out passages."""

    @abstractmethod
    def read(self) -> Splits:
        """Train, validation and test documents that do not overlap. InputError where there are none."""

    @cached_property
    def splits(self) -> Splits:
        """What `read` gave, read once; InputError where a split is empty."""
        return require_splits(self.read(), self.label)

    def data_hash(self) -> str:
        """Hash of all three splits."""
        return data_hash([document for part in self.splits for document in part])

    def training_batches(self, tokenizer: Tokenizer, cell: Cell, count: int, seed: int) -> "list[Batch]":
        """Windows of seq_len from the shuffled documents, one after another; a new order for each epoch."""
        import torch

        if cell.seq_len < 2:
            raise InputError(
                f"workload {self.label}: a window of {cell.seq_len} token predicts nothing; seq_len must be at least 2"
            )
        windows = self._training_windows(tokenizer, cell.seq_len, seed)
        batches = []
        for _ in range(count):
            ids, labels = zip(*islice(windows, cell.batch_size), strict=True)
            inputs = torch.tensor(ids)
            batches.append({"input_ids": inputs, "attention_mask": torch.ones_like(inputs), "labels": torch.tensor(labels)})
        return batches

    def _training_windows(self, tokenizer: Tokenizer, seq_len: int, seed: int) -> Iterator[tuple[list[int], list[int]]]:
        rng = random.Random(seed)  # noqa: S311 - an order, not a secret
        ids: list[int] = []
        labels: list[int] = []
        while True:
            for document in rng.sample(self.splits.train, len(self.splits.train)):
                tokens, given = _encoded(document, tokenizer)
                ids += tokens
                labels += [_UNLEARNT] * given + tokens[given:]
                whole = len(ids) - len(ids) % seq_len
                for at in range(0, whole, seq_len):
                    targets = labels[at : at + seq_len]
                    if any(label != _UNLEARNT for label in targets[1:]):  # the mean loss over no label is not a number
                        yield ids[at : at + seq_len], targets
                ids, labels = ids[whole:], labels[whole:]

    def prompts(self, tokenizer: Tokenizer, cell: Cell) -> "Tensor":
        """The first batch_size × seq_len tokens of the test passages; repeated where there are not enough."""
        import torch

        needed = cell.batch_size * cell.seq_len
        ids: list[int] = []
        while len(ids) < needed:
            for passage in self._passages("test"):
                ids += _encoded(passage, tokenizer)[0]
                if len(ids) >= needed:
                    break
        return torch.tensor(ids[:needed]).view(cell.batch_size, cell.seq_len)

    def quality(
        self, logits: "Callable[[Tensor, Tensor], Tensor]", tokenizer: Tokenizer, cell: Cell, split: HeldOut = "test"
    ) -> Quality:
        """Bits per byte and top-1 accuracy; each token predicted once, within windows of seq_len that a start token opens."""
        passages = self._passages(split)[: cell.quality_documents]
        nats, hits, tokens = [0.0] * len(passages), [0] * len(passages), [0] * len(passages)
        encoded = [_encoded(passage, tokenizer) for passage in passages]
        for rows in _evaluation_batches(encoded, cell):
            for index, window_nats, window_hits, window_tokens in _score(logits, rows):
                nats[index] += window_nats
                hits[index] += window_hits
                tokens[index] += window_tokens
        sizes = [len(passage.text.encode()) for passage in passages]
        return Quality(
            scores={
                "bits_per_byte": sum(nats) / math.log(2) / sum(sizes),
                "top1_accuracy": sum(hits) / sum(tokens),
            },
            per_sample={
                "bits_per_byte": [n / math.log(2) / size for n, size in zip(nats, sizes, strict=True)],
                "top1_accuracy": [h / t for h, t in zip(hits, tokens, strict=True)],
            },
            weights=[float(size) for size in sizes],
            names=[passage.name for passage in passages],
        )

    def _passages(self, split: HeldOut) -> list[Document]:
        """Passages in an order that depends on their names alone, so that the first few are a fair mix."""
        found = [passage for document in getattr(self.splits, split) for passage in passages_of(document)]
        return sorted(found, key=lambda passage: hashlib.sha256(passage.name.encode()).digest())


def passages_of(document: Document) -> list[Document]:
    """A document cut at paragraphs into passages of up to 2000 characters, none empty; one with a prompt stays whole."""
    if document.prompt:
        return [document]
    groups: list[list[str]] = [[]]
    for paragraph in document.text.split("\n\n"):
        if groups[-1] and len("\n\n".join([*groups[-1], paragraph])) > _PASSAGE_CHARS:
            groups.append([])
        groups[-1].append(paragraph)
    texts = [text for group in groups if (text := "\n\n".join(group).strip())]
    return [Document(f"{document.name}#{number}", text) for number, text in enumerate(texts)]


def require_splits(splits: Splits, label: str) -> Splits:
    """The splits; InputError where one of them is empty."""
    for name, documents in zip(splits._fields, splits, strict=True):
        if not documents:
            raise InputError(f"workload {label}: nothing is left for the {name} split; give more documents (30 are plenty)")
    return splits


@dataclass(frozen=True)
class _Window:
    passage: int
    ids: list[int]
    counted: list[bool]
    """Which ids are predicted and scored: never the opening one, nor a prompt's."""


def _encoded(document: Document, tokenizer: Tokenizer) -> tuple[list[int], int]:
    """Start token, prompt and text as ids, and how many of them are given rather than learnt."""
    prompt = tokenizer.encode(document.prompt) if document.prompt else []
    ids = [tokenizer.start, *prompt, *tokenizer.encode(document.text)]
    return ids, len(prompt) + 1 if prompt else 0


def _evaluation_batches(encoded: Sequence[tuple[list[int], int]], cell: Cell) -> Iterator[list[_Window]]:
    """Windows of seq_len that the start token opens, in batches, longest first so that little is padding."""
    width, windows = max(1, cell.seq_len - 1), []
    room = min(_TOKENS_AT_ONCE, _LOGITS_AT_ONCE // cell.facts.vocab)
    for index, (ids, given) in enumerate(encoded):
        for at in range(1, len(ids), width):
            piece = ids[at : at + width]
            counted = [False, *(position >= given for position in range(at, at + len(piece)))]
            if any(counted):
                windows.append(_Window(index, [ids[0], *piece], counted))
    windows.sort(key=lambda window: -len(window.ids))
    while windows:
        count = max(1, room // len(windows[0].ids))
        yield windows[:count]
        windows = windows[count:]


def _score(logits: "Callable[[Tensor, Tensor], Tensor]", windows: Sequence[_Window]) -> Iterator[tuple[int, float, int, int]]:
    """(passage, nats, right guesses, tokens) of each window; padding is masked and not counted."""
    import torch
    from torch.nn.functional import cross_entropy
    from torch.nn.utils.rnn import pad_sequence

    sequences = [torch.tensor(window.ids) for window in windows]
    ids = pad_sequence(sequences, batch_first=True)
    counted = pad_sequence([torch.tensor(window.counted) for window in windows], batch_first=True)[:, 1:]
    mask = (torch.arange(ids.shape[1]) < torch.tensor([len(s) for s in sequences])[:, None]).long()
    predicted, targets = logits(ids, mask)[:, :-1], ids[:, 1:]
    losses = cross_entropy(predicted.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)
    losses = losses.masked_fill(~counted, 0.0)
    right = (predicted.argmax(-1) == targets) & counted
    for row, window in enumerate(windows):
        yield window.passage, float(losses[row].double().sum()), int(right[row].sum()), int(counted[row].sum())
