"""One board over several models and workloads: what of them can be averaged, and what a reader must know of it."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from effbench.board.measures import Measure, measures_of
from effbench.board.rows import Row, common_shapes

if TYPE_CHECKING:
    import pandas as pd

_LOSS = "train.final_loss"


def without_scores(trials: "pd.DataFrame") -> "pd.DataFrame":
    """The same trials without their quality: scores of different texts and models have no mean that says anything."""
    metric = trials["metric"].astype(object)
    return trials.assign(metric=metric.mask(metric.str.startswith("quality", na=False)))


def aggregated_measures(shown: Sequence[str]) -> tuple[Measure, ...]:
    """What is compared: all but the loss, which is a score too."""
    return tuple(measure for measure in measures_of(shown) if measure.metric != _LOSS)


def aggregate_notes(places: Sequence[str], rows: Sequence[Row], ranked_by: str | None) -> Iterator[str]:
    """Over what it is, on how many cells, which stacks lack some, and what is not averaged; nothing of a board of one place."""
    if not places:
        return
    yield (
        f"aggregate of {', '.join(places)}: ratios are geometric means over the cells that all compared stacks completed; "
        "rounds of different models and workloads are paired in their order"
    )
    if ranked_by:
        everywhere = {shape for row in rows for shape in row.shapes(ranked_by)}
        common = common_shapes(rows, ranked_by)
        yield f"{ranked_by}: {len(common)} of {len(everywhere)} cells are such"
        if lacking := [
            f"`{row.label}` has {len(found)}" for row in rows if (found := row.shapes(ranked_by)) and found < everywhere
        ]:
            yield f"of these {len(everywhere)} cells {', '.join(lacking)}"
    yield (
        "quality scores and losses of different texts are never averaged, and stand on the boards of each model and workload; "
        "what their scores there keep out of the ranking is not ranked here"
    )
