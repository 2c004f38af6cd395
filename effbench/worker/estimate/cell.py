"""One cell's footprint: each rank is estimated in a fork of its own, as a trial runs in one.

What a library does to itself on fake tensors, or dies of, stays there.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Never

import torch._dynamo  # noqa: F401 - fake tensors need it, and it takes seconds: once, not in every fork

from effbench.plugin.cell import Cell
from effbench.plugin.mesh import mesh_shape
from effbench.plugin.model import ModelSource
from effbench.plugin.technique import Technique
from effbench.store.footprint import Footprint, RankFootprint
from effbench.worker.estimate.fakes import fake_ranks
from effbench.worker.estimate.reasons import reason
from effbench.worker.estimate.step import RankEstimate
from effbench.worker.ranks import Place, Ranks, device_mesh


def footprint(cell: Cell, techniques: Sequence[Technique], source: ModelSource, phase_skips: Mapping[str, str]) -> Footprint:
    """Estimate the ranks that differ; where one cannot be, the cell has no estimate."""
    started = time.monotonic()
    found: list[RankFootprint] = []
    for rank in _differing(techniques, cell.world_size):
        answer = _forked(partial(_of_rank, rank, cell, techniques, source, phase_skips), techniques)
        if isinstance(answer, str):
            return Footprint(cell_id=cell.id, absent=answer, seconds=time.monotonic() - started)
        found.append(answer)
    return Footprint(cell_id=cell.id, ranks=found, seconds=time.monotonic() - started)


def _of_rank(
    rank: int, cell: Cell, techniques: Sequence[Technique], source: ModelSource, phase_skips: Mapping[str, str]
) -> RankFootprint:
    with fake_ranks(rank, cell.world_size):
        mesh = device_mesh("cpu", techniques, cell.world_size) if cell.world_size > 1 else None
        return RankEstimate(cell, techniques, source, Ranks(Place(rank, rank, cell.world_size), mesh)).run(phase_skips)


def _differing(techniques: Sequence[Technique], world_size: int) -> range:
    """One rank for each stage of a pipeline: along the other dimensions, ranks hold and do the same."""
    stages = mesh_shape(techniques, world_size).get("pp", 1)
    return range(0, world_size, world_size // stages)


def _forked(action: Callable[[], RankFootprint], techniques: Sequence[Technique]) -> RankFootprint | str:
    """What the action finds in a process of its own, or why it finds nothing."""
    receiver, sender = Pipe(duplex=False)
    child = os.fork()
    if child == 0:
        receiver.close()
        _answer(action, sender, techniques)
    sender.close()
    try:
        said = json.loads(receiver.recv_bytes())
    except EOFError:
        said = {"why_not": "the process that estimated it died"}
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return f"the process that estimated it died of {signal.Signals(os.WTERMSIG(status)).name}"
    return said["why_not"] if "why_not" in said else RankFootprint.model_validate(said)


def _answer(action: Callable[[], RankFootprint], sender: Connection, techniques: Sequence[Technique]) -> Never:
    os.dup2(2, 1)  # what a plugin prints is not part of the answer
    try:
        answer = action().model_dump_json()
    except Exception as error:  # noqa: BLE001 - what a plugin raises on fake tensors is why there is no estimate
        answer = json.dumps({"why_not": reason(error, techniques)})
    sender.send_bytes(answer.encode())
    sys.stderr.flush()
    os._exit(0)
