"""What a trial times, and which metrics come of it."""

from collections.abc import Iterator
from typing import NamedTuple

from effbench.store.record import Record


class Action(NamedTuple):
    """One timed action."""

    samples: str
    """Its list in the sidecar."""
    time: str
    """The metric of its time."""
    parts: int
    """How many of what the metric counts one sample holds."""
    rate: str | None
    """The metric of its throughput."""
    volume: int
    """Tokens of one sample, of all ranks together."""


def actions(record: Record) -> Iterator[Action]:
    """Those that the record says were timed, with the definitions of docs/metrics.md."""
    cell, phases = record.cell, record.phases
    batch, steps = cell.batch_size, cell.decode_steps
    if phases.get("train") == "ok":
        yield Action("step", "train.step_s", 1, "train.tokens_per_s", batch * cell.seq_len)
    if phases.get("infer") == "ok":
        yield Action("prefill", "infer.prefill_s", 1, "infer.prefill_tokens_per_s", batch * cell.seq_len)
        if steps and phases.get("decode", "ok") == "ok":
            yield Action("decode", "infer.decode_token_s", steps, "infer.decode_tokens_per_s", batch * steps)
            yield Action("end_to_end", "infer.end_to_end_s", 1, None, 0)
