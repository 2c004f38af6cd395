"""How a stack's parallel techniques share the ranks: the degree of each, and the mesh they span. Without torch."""

from collections.abc import Sequence
from math import prod

from effbench.plugin.technique import Dimension, Technique

ORDER: tuple[Dimension, ...] = ("pp", "dp", "cp", "tp")
"""From the outermost dimension to the innermost, whose ranks are neighbours: tensor parallelism talks most, stages least."""
_SHARED = 2
"""The degree of a dimension that does not say, where another does not say either: the smallest that splits anything."""


def degrees(techniques: Sequence[Technique], world_size: int) -> list[int]:
    """How many ranks each technique spreads over; 1 for one of no dimension.

    One technique without a degree takes what the others leave. Of several, data parallelism does, else the last of them, and
    each of the others takes two. The product is the world size, or the stack does not exist at it.
    """
    given = [technique.degree() if technique.dimension else 1 for technique in techniques]
    open_ = [i for i, degree in enumerate(given) if degree is None]
    if open_:
        rest = max(open_, key=lambda i: (techniques[i].dimension == "dp", i))
        given = [min(_SHARED, world_size) if d is None and i != rest else d for i, d in enumerate(given)]
        given[rest] = max(1, world_size // prod(degree for degree in given if degree is not None))
    return [degree or 1 for degree in given]


def mesh_shape(techniques: Sequence[Technique], world_size: int) -> dict[Dimension, int]:
    """Degree by dimension, outermost first."""
    found = {t.dimension: degree for t, degree in zip(techniques, degrees(techniques, world_size), strict=True)}
    return {dimension: found[dimension] for dimension in ORDER if dimension in found}
