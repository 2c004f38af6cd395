"""Workloads on which it shows when a model loses what stood far back."""

import re
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from itertools import accumulate, pairwise
from pathlib import Path
from typing import ClassVar

from effbench.plugin import InputError, Workload, hookimpl
from effbench.plugin.answer_workload import AnswerWorkload, Sample, Samples, answered
from effbench.reference import texts
from effbench.store.cache import kept

_SEED = 0
_FOLDER = Path(__file__).parent


class ListOps(AnswerWorkload):
    """`listops:500-2000`: the value of a nested expression of MIN, MAX, median and sum modulo 10 (Tay et al. 2020).

    After Long Range Arena (arXiv 2011.04006; Nangia & Bowman 2018, arXiv 1804.06028): an expression's length, in digits plus
    two per operator, lies strictly between the bounds. Numbers of samples may follow: `listops:100-200,train=50000,test=500`.
    A token is a digit, an operator with its bracket, or a closing bracket; the answer is one digit.
    """

    name: ClassVar = "listops"
    _usage: ClassVar = (
        "workload listops:{}: write listops:MIN-MAX, the lengths being strictly between (500-2000 when left out), with the "
        "numbers of samples behind it if need be: listops:100-200,train=20000,validation=2000,test=2000"
    )

    def __init__(self, argument: str | None = None) -> None:
        super().__init__(argument)
        lengths, *sizes = (argument if argument is not None else "500-2000").split(",")
        match = re.fullmatch(r"(\d{1,5})-(\d{1,5})", lengths, re.ASCII)
        given = dict(size.partition("=")[::2] for size in sizes)
        if not match or not all(re.fullmatch(r"[1-9]\d{0,6}", n, re.ASCII) for n in given.values()):
            raise InputError(self._usage.format(argument))
        self.lengths = int(match[1]), int(match[2])
        self.sizes = {"train": 20_000, "validation": 2000, "test": 2000}
        if not given.keys() <= self.sizes.keys() or self.lengths[1] - self.lengths[0] < 2:
            raise InputError(self._usage.format(argument))
        self.sizes |= {split: int(size) for split, size in given.items()}

    @property
    def length(self) -> int:
        """The longest expression, the separator and the answer."""
        return self.lengths[1] - 1 + 2

    def read(self) -> Samples:
        """Generated once, from one seed: no expression stands twice in all three splits together."""
        made_by = f"{self.lengths} {self.sizes} {_SEED} numpy {version('numpy')}".encode() + _source("listops.py")
        found = kept("listops", made_by, self._make)
        return _divided((answered(f"{n}", text.encode(), ord(f"{value}")) for n, (text, value) in enumerate(found)), self.sizes)

    def _make(self) -> list[tuple[str, int]]:
        from .listops import expressions

        return expressions(self.lengths, sum(self.sizes.values()), _SEED)


class Recall(AnswerWorkload):
    """`recall:8@256`: 8 key-value pairs, 256 tokens of filler, then each key is asked for its value (Arora et al. 2023).

    Multi-query associative recall (arXiv 2312.04927) at a distance of one's choice. Of 64 keys each stands at most once in a
    sequence; of 64 values each may stand several times. Accuracy is over the values asked for.
    """

    name: ClassVar = "recall"
    sizes: ClassVar = {"train": 20_000, "validation": 500, "test": 2000}

    def __init__(self, argument: str | None = None) -> None:
        super().__init__(argument)
        match = re.fullmatch(r"(\d{1,2})@(\d{1,6})", argument if argument is not None else "8@256", re.ASCII)
        if not match or not 2 <= int(match[1]) <= 64:
            raise InputError(
                f"workload recall:{argument}: write recall:PAIRS@DISTANCE with 2 to 64 pairs and the number of tokens "
                "between them and the queries, for example recall:8@256"
            )
        self.pairs, self.distance = int(match[1]), int(match[2])

    @property
    def length(self) -> int:
        """Pairs, filler, pairs."""
        return 4 * self.pairs + self.distance

    def read(self) -> Samples:
        """Generated from one seed."""
        from .recall import sequences

        answers = tuple(range(self.length - 2 * self.pairs + 1, self.length, 2))
        found = sequences(self.pairs, self.distance, sum(self.sizes.values()), _SEED)
        return _divided((Sample(f"{n}", tokens, answers) for n, tokens in enumerate(found)), self.sizes)


class ByteClass(AnswerWorkload):
    """`byte_class:512`: from 512 bytes of the standard library's source, which of four kinds of module they are from.

    Like Long Range Arena's classification of text on bytes, on what every Python carries. The kinds (internet, concurrency,
    language, data) are equally frequent; a module is in one split alone; names of modules are struck out of the text.
    """

    name: ClassVar = "byte_class"

    def __init__(self, argument: str | None = None) -> None:
        super().__init__(argument)
        if not re.fullmatch(r"\d{2,4}", argument if argument is not None else "512", re.ASCII):
            raise InputError(f"workload byte_class:{argument}: write byte_class:BYTES, from 10 to 9999 (byte_class:512)")
        self.size = int(argument or 512)

    @property
    def length(self) -> int:
        """The bytes, the separator and the answer."""
        return self.size + 2

    def read(self) -> Samples:
        """Reading the whole library takes seconds, so the result is kept in the user's cache folder."""
        made_by = f"{self.size} {sys.version}".encode() + Path(texts.__file__).read_bytes() + _source("byte_class.py")
        parts = kept("byte_class", made_by, self._make)
        return Samples(*([answered(name, text.encode(), 3 + kind) for name, text, kind in part] for part in parts))

    def _make(self) -> list[list[tuple[str, str, int]]]:
        from .byte_class import pieces

        parts = pieces(self.size)
        if not all(parts):
            raise InputError(f"workload {self.label}: too few modules are that long; write fewer bytes")
        return parts


def _divided(samples: Iterable[Sample], sizes: Mapping[str, int]) -> Samples:
    """One after another into the splits."""
    found = list(samples)
    return Samples(*(found[start:end] for start, end in pairwise(accumulate(sizes.values(), initial=0))))


def _source(file: str) -> bytes:
    """What made a sample is part of what it is."""
    return (_FOLDER / file).read_bytes()


@hookimpl
def register_workloads(register: "Callable[[type[Workload]], None]") -> None:
    """Register the long-range workloads."""
    for workload in (ListOps, Recall, ByteClass):
        register(workload)
