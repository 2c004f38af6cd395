"""ListOps expressions, generated and evaluated for thousands of trees at once."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from effbench.plugin import InputError

Ints = NDArray[np.int64]

OPERATORS = {"m": "MIN", "M": "MAX", "d": "MED", "s": "SM"}
"""One character is one token: an operator with its opening bracket, a digit, or the closing bracket."""
_LETTERS = np.frombuffer("".join(OPERATORS).encode(), np.uint8)
_CLOSING = ord("]")
_DEPTH, _DIGIT, _ARGUMENTS = 10, 0.75, (2, 10)
_CANDIDATES = 4096  # trees grown at once: enough that numpy's own overhead is nothing
_PER_EXPRESSION = 2_000  # candidates at most; at Long Range Arena's lengths 20 are needed


def expressions(lengths: tuple[int, int], count: int, seed: int) -> list[tuple[str, int]]:
    """`count` different expressions of a length strictly between the bounds, each with its value.

    Long Range Arena's rules: a node is a digit with probability 0.75, otherwise an operator with 2 to 10 arguments, and always
    a digit at depth 10; of what comes out so, all of a fitting length are kept. InputError where hardly any is.
    """
    generator = np.random.default_rng(seed)
    found: dict[str, int] = {}
    tried = 0
    while len(found) < count:
        for expression, value in _Forest(generator, lengths[1]).expressions(lengths):
            found.setdefault(expression, value)
        tried += _CANDIDATES
        if tried > _PER_EXPRESSION * (len(found) + 50):
            raise InputError(
                f"workload listops: {len(found)} different expressions longer than {lengths[0]} and shorter than {lengths[1]} "
                f"among {tried}, {count} are needed; allow more lengths"
            )
    return list(found.items())[:count]


class _Forest:
    """Random trees level by level; a level's arrays hold one entry per node, children in the order of their parents."""

    def __init__(self, generator: np.random.Generator, too_long: int) -> None:
        self.trees: list[Ints] = [np.arange(_CANDIDATES)]
        """Which tree a node belongs to."""
        self.arity: list[Ints] = []
        """0 of a digit."""
        length = np.zeros(_CANDIDATES, np.int64)
        for depth in range(1, _DEPTH + 1):
            trees = self.trees[-1]
            operators = (generator.random(len(trees)) >= _DIGIT) & (length[trees] < too_long) & (depth < _DEPTH)
            arity = operators * generator.integers(*_ARGUMENTS, len(trees), endpoint=True)
            length += np.bincount(trees, np.where(operators, 2, 1), _CANDIDATES).astype(np.int64)
            self.arity.append(arity)
            self.trees.append(np.repeat(trees, arity))
        self.length = length
        self.value = [generator.integers(0, 10, len(arity)) for arity in self.arity]
        self.operator = [generator.integers(0, len(_LETTERS), len(arity)) for arity in self.arity]
        self.size = [np.where(arity > 0, 2, 1) for arity in self.arity]
        """Characters of a node's whole subtree."""
        self._evaluate()

    def _evaluate(self) -> None:
        """Values and sizes of all nodes, from the deepest level upwards."""
        for level in range(_DEPTH - 2, -1, -1):
            inner = self.arity[level] > 0
            if inner.any():
                arity = self.arity[level][inner]
                self.value[level][inner] = _applied(self.operator[level][inner], arity, self.value[level + 1])
                self.size[level][inner] += np.add.reduceat(self.size[level + 1], _starts(arity))

    def expressions(self, lengths: tuple[int, int]) -> Iterator[tuple[str, int]]:
        """Those of a fitting length, in prefix order, with their values."""
        kept = (self.length > lengths[0]) & (self.length < lengths[1])
        ends = np.cumsum(np.where(kept, self.length, 0))
        text = np.zeros(ends[-1], np.uint8)
        place = ends - self.length  # of the roots, and then of each level's nodes
        for level, arity in enumerate(self.arity):
            inner, shown = arity > 0, kept[self.trees[level]]
            character = np.where(inner, _LETTERS[self.operator[level]], ord("0") + self.value[level])
            text[place[shown]] = character[shown]
            text[(place + self.size[level] - 1)[shown & inner]] = _CLOSING
            if level + 1 < _DEPTH:
                place = np.repeat(place[inner] + 1, arity[inner]) + _before_siblings(self.size[level + 1], arity[inner])
        content = text.tobytes().decode()
        for root in np.flatnonzero(kept):
            yield content[ends[root] - self.length[root] : ends[root]], int(self.value[0][root])


def _applied(operator: Ints, arity: Ints, arguments: Ints) -> Ints:
    """Each operator on its own run of arguments."""
    starts = _starts(arity)
    owner = np.repeat(np.arange(len(arity)), arity)
    ordered = arguments[np.lexsort((arguments, owner))]
    middle = starts + (arity - 1) // 2, starts + arity // 2  # the same place where their number is odd
    median = (ordered[middle[0]] + ordered[middle[1]]) // 2
    last = starts + arity - 1
    results: tuple[Any, ...] = (ordered[starts], ordered[last], median, np.add.reduceat(arguments, starts) % 10)
    return np.choose(operator, results)


def _starts(arity: Ints) -> Ints:
    """Where each operator's run of children begins."""
    return np.cumsum(arity) - arity


def _before_siblings(sizes: Ints, arity: Ints) -> Ints:
    """Characters of a node's elder siblings."""
    before = np.cumsum(sizes) - sizes
    return before - np.repeat(before[_starts(arity)], arity)
