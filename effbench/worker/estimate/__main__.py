"""`python -m effbench.worker.estimate`: cells as JSON on stdin, a footprint per line on stdout.

Each rank is estimated in a fork of its own, as a trial is: what a library does to itself, or dies of, stays there.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from math import prod
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Never

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: children of busy threads hang

import torch
import transformers

from effbench.plugin.catalog import Catalog
from effbench.plugin.cell import Cell
from effbench.plugin.discovery import discover
from effbench.plugin.technique import Technique
from effbench.store.footprint import Footprint, RankFootprint
from effbench.worker.estimate.fakes import fake_ranks
from effbench.worker.estimate.reasons import reason
from effbench.worker.estimate.step import RankEstimate
from effbench.worker.ranks import Place, Ranks


def main() -> None:
    """Read the request, answer cell by cell."""
    request = json.load(sys.stdin)
    torch.set_num_threads(1)
    catalog = discover([Path(f) for f in request["files"]], [Path(f) for f in request["folders"]])
    for asked in request["cells"]:
        cell = Cell.model_validate(asked["cell"])
        reference, trusted = request["models"][cell.model], request["trust_remote_code"]
        footprint = _footprint(catalog, cell, asked["phase_skips"], reference, trust_remote_code=trusted)
        sys.stdout.write(footprint.model_dump_json() + "\n")
        sys.stdout.flush()


def _footprint(
    catalog: Catalog, cell: Cell, phase_skips: Mapping[str, str], reference: str, *, trust_remote_code: bool
) -> Footprint:
    started = time.monotonic()
    techniques = [catalog.technique(name, options) for name, options in cell.techniques]
    source = catalog.model(reference, trust_remote_code=trust_remote_code)

    def estimate(rank: int) -> RankFootprint:
        with fake_ranks(rank, cell.world_size):
            mesh = mesh_of(techniques, cell.world_size)
            return RankEstimate(cell, techniques, source, Ranks(Place(rank, rank, cell.world_size), mesh)).run(phase_skips)

    found: list[RankFootprint] = []
    for rank in different_ranks(techniques, cell.world_size):
        answer = _forked(lambda rank=rank: estimate(rank), techniques)
        if isinstance(answer, str):
            return Footprint(cell_id=cell.id, absent=answer, seconds=time.monotonic() - started)
        found.append(answer)
    return Footprint(cell_id=cell.id, ranks=found, seconds=time.monotonic() - started)
