"""What a board says of published claims, and how sure its front is."""

import json
from typing import TYPE_CHECKING, Any

from effbench.board.claims import Judgement, judge
from effbench.board.pareto import Front, fronts_of
from effbench.plugin.errors import InputError

if TYPE_CHECKING:
    from effbench.board.leaderboard import Leaderboard


def claims_of(board: "Leaderboard") -> list[dict[str, Any]]:
    """Every claim of the board's suite, judged by this board."""
    return [claim_data(judgement) for judgement in judge(board)]


def claim_data(judgement: Judgement) -> dict[str, Any]:
    """A judged claim, with what it stands on."""
    claim = judgement.claim
    said = {name: getattr(claim, name) for name in ("source", "says", "stack", "metric", "relation", "value")}
    found = {name: getattr(judgement, name) for name in ("verdict", "evidence", "estimate", "low", "high", "rounds")}
    return said | {"where": json.dumps(claim.where, sort_keys=True, default=str) if claim.where else ""} | found


def front_of(board: "Leaderboard") -> dict[str, Any] | None:
    """The front over the metrics of the board's suite, with probabilities; None where the board has none."""
    try:
        [front] = fronts_of([board])
    except InputError:  # no row has all of the metrics
        return None
    return front_data(front)


def front_data(front: Front) -> dict[str, Any]:
    """The rows of a front, the likeliest first, as the board found them."""
    names = ("stack", "probability", "on_front", "dominated_by")
    return {"metrics": front.metrics, "knee": front.knee, **{name: front.rows[name].tolist() for name in names}}
