"""A real trial's peak memory, and the estimate of the same cell."""

import json
import os
from collections.abc import Sequence
from typing import Any

import torch

from effbench.plugin.discovery import discover
from effbench.worker import trial
from effbench.worker.allocator import set_allocator
from effbench.worker.estimate.cell import footprint
from effbench.worker.ranks import Place, Ranks, Rendezvous, join, listen
from tests.records import make_cell

CATALOG = discover()


def cell_of(model: str, techniques: Sequence[Any] = (), **fields: Any) -> Any:
    source = CATALOG.model(model)
    used = tuple((name, {}) if isinstance(name, str) else name for name in techniques)
    return make_cell(facts=source.facts(), model=model, techniques=used, **({"steps": 3} | fields))


def estimate(cell: Any, **phase_skips: str) -> Any:
    return footprint(cell, techniques_of(cell), CATALOG.model(cell.model), phase_skips)


def measure(cell: Any) -> list[dict[str, float]]:
    """Metrics of each rank's training steps, under `allocator = "release"`: holes are no need of the step's."""
    with listen("127.0.0.1") as store:
        readers = [_start(cell, Place(rank, rank, cell.world_size), store) for rank in range(cell.world_size)]
    answers = [json.loads(os.fdopen(reader).read()) for reader in readers]
    for _ in readers:
        os.wait()
    for answer in answers:
        assert answer["status"] == "ok", answer["error"]
    return [{name: metric["median"] for name, metric in answer["metrics"].items()} for answer in answers]


def techniques_of(cell: Any) -> list[Any]:
    return [CATALOG.technique(name, options) for name, options in cell.techniques]


def _start(cell: Any, place: Place, store: Any) -> int:
    reader, writer = os.pipe()
    if os.fork() == 0:
        try:
            set_allocator("release")
            answer = json.dumps(_trial(cell, place, store).__dict__, default=str)
            os.write(writer, answer.encode())  # smaller than the pipe
        finally:
            os._exit(0)
    os.close(writer)
    return reader


def _trial(cell: Any, place: Place, store: Any) -> trial.Outcome:
    ranks = Ranks()
    if cell.world_size > 1:
        host, port = store.getsockname()
        rendezvous = Rendezvous(host, port, store.detach() if place.rank == 0 else None)
        ranks = join(place, rendezvous, torch.device("cpu"), techniques_of(cell))
    request = trial.TrialRequest(
        cell=cell,
        seed=0,
        techniques=techniques_of(cell),
        source=CATALOG.model(cell.model),
        workload=CATALOG.workload("docstrings"),
        meters=[CATALOG.meters.get(name)() for name in ("memory", "state", "flops")],
        phase_skips={"infer": "not asked for"},
        ranks=ranks,
    )
    outcome = trial.run(request, announce=lambda phase: None)
    outcome.samples = {}
    return outcome
