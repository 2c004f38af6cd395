"""What a cell takes of each rank, estimated on fake tensors: see `effbench estimate`, docs/estimate.md.

(`effbench.plan.estimate` is another thing: how long a plan may take, from rules of thumb and earlier records.)
"""

from pydantic import BaseModel, ConfigDict


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Collective(_Part):
    """All collectives of one kind in a step."""

    kind: str
    calls: int
    bytes: float
    """Of the whole tensors: what is reduced, or what is gathered into."""
    sent_bytes: float
    """By this rank, under the usual ring algorithm."""


class Work(_Part):
    """What is computed and sent; absent where an operator is not known."""

    flops: int | None
    """Matrix products, a multiply-add being two operations, attention dense."""
    unknown_operator: str | None = None
    """Why flops are absent."""
    collectives: list[Collective] | None

    @property
    def sent_bytes(self) -> float | None:
        """By this rank, in all kinds of collectives together."""
        return None if self.collectives is None else sum(collective.sent_bytes for collective in self.collectives)


class TrainFootprint(_Part):
    """One training step of one rank, with the optimizer's state there already. Bytes."""

    weights: int
    """Parameters and buffers, this rank's part of them."""
    gradients: int
    optimizer_state: int
    other: int
    """What else lives from step to step: a teacher, masks, copies."""
    activations: int
    """The most that forward and backward hold beyond all of these; whole weights gathered for use are part of it."""
    step_peak: int
    """Of forward and backward: at most the sum of the above, since activations go while gradients come."""
    update_peak: int
    """Of the optimizer's update, whose temporaries may be as large as the gradients."""
    work: Work

    @property
    def peak(self) -> int:
        """Of the whole step: what `train.peak_memory_bytes` measures."""
        return max(self.step_peak, self.update_peak)


class InferFootprint(_Part):
    """One prefill and one decoded token of one rank, after techniques have converted the model. Bytes."""

    weights: int
    prefill_peak: int
    """With the weights."""
    kv_cache: int | None
    """Behind the prompt and all new tokens; absent where nothing is decoded."""
    prefill: Work
    decode_token: Work | None


class RankFootprint(_Part):
    """One rank's share."""

    rank: int
    mesh: dict[str, int] = {}
    """Coordinates of the rank, by dimension."""
    parameters: int
    """Of the modules that this rank takes part in, sharded ones whole."""
    trainable: int
    train: TrainFootprint | None = None
    infer: InferFootprint | None = None
    absent: dict[str, str] = {}
    """Phase → why there is no estimate of it."""


class Footprint(_Part):
    """One cell: a rank for each that differs from the others."""

    cell_id: str
    ranks: list[RankFootprint] = []
    absent: str | None = None
    """Why there is no estimate at all."""
    seconds: float
    """That the estimate took."""
