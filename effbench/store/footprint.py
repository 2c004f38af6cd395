"""What a step of a cell takes, estimated without running it."""

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
