"""Sequences for multi-query associative recall."""

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

KEYS, VALUES, FILLER = range(64, 128), range(128, 192), range(3, 35)
"""Tokens of each kind; they share none."""


def sequences(pairs: int, distance: int, count: int, seed: int) -> list[bytes]:
    """`count` different sequences: key-value pairs, filler, then every key once more, in another order, before its value."""
    generator = np.random.default_rng(seed)
    found: dict[bytes, None] = {}
    while len(found) < count:
        keys = generator.permuted(np.tile(KEYS, (count, 1)), axis=1)[:, :pairs]
        values = generator.integers(VALUES.start, VALUES.stop, (count, pairs))
        filler = generator.integers(FILLER.start, FILLER.stop, (count, distance))
        order = generator.permuted(np.tile(np.arange(pairs), (count, 1)), axis=1)
        queries = _pairs(np.take_along_axis(keys, order, 1), np.take_along_axis(values, order, 1))
        rows = np.concatenate([_pairs(keys, values), filler, queries], axis=1).astype(np.uint8)
        found |= dict.fromkeys(row.tobytes() for row in rows)
    return list(found)[:count]


def _pairs(keys: Ints, values: Ints) -> Ints:
    return np.stack([keys, values], axis=-1).reshape(len(keys), -1)
