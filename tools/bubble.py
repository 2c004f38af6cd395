"""A pipeline's bubble beside its formula, under the schedules that the technique `pipeline` runs.

Stages wait a known time instead of computing (twice as long backward as forward), so that there may be more of them than cores:
the bubble is 1 - m (forward + backward) / time of the step. With --compute they are equal layers that compute, for as many
ranks as there are cores, and the bubble is the share of the step in which a rank's thread sleeps, mean over ranks.

    python tools/bubble.py --ranks 2 4 8
"""

import argparse
import multiprocessing
import os
import time
from statistics import fmean, median
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from effbench_plugins.meters.communication import _busy_seconds
from effbench_plugins.pipeline.training import scheduled
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage

SCHEDULES = {"gpipe": 1, "1f1b": 1, "interleaved": 2}
"""And how many stages each has per rank."""
STEPS = 3  # after one that sets up
ROWS, WIDTH, DEPTH = 256, 512, 8


class _Wait(torch.autograd.Function):
    """Time in place of computing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, seconds: float) -> Tensor:
        ctx.seconds = seconds
        time.sleep(seconds)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        time.sleep(2 * ctx.seconds)
        return gradients[0], None


class Waiting(nn.Module):
    """A stage that takes a known time."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds, self.weight = seconds, nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """Wait, and keep the graph."""
        return _Wait.apply(x * self.weight, self.seconds)  # type: ignore[no-any-return]


def computing(stages_per_rank: int) -> nn.Module:
    """A stage that computes; all of a rank's together do the same, however many they are."""
    return nn.Sequential(*[nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH // stages_per_rank)])


def measured(name: str, microbatches: int, seconds: float | None) -> float:
    """The bubble of one schedule; every rank calls it, and each gets its own view of it."""
    rank, ranks, per_rank = dist.get_rank(), dist.get_world_size(), SCHEDULES[name]
    example = torch.zeros(ROWS, WIDTH)
    grows = example.clone().requires_grad_()
    count = ranks * per_rank
    stages = []
    for number in range(rank, count, ranks):
        module = computing(per_rank) if seconds is None else Waiting(seconds / per_rank)
        given = example if number == 0 else grows
        stages.append(PipelineStage(module, number, count, torch.device("cpu"), given, grows))
    schedule = scheduled(name, stages, microbatches, lambda output, _: output.sum())
    first = (torch.rand(ROWS * microbatches, WIDTH),) if rank == 0 else ()
    last = {"target": torch.zeros(microbatches)} if rank == ranks - 1 else {}
    bubbles = []
    for _ in range(1 + STEPS):
        dist.barrier()
        start, busy = time.perf_counter(), _busy_seconds()
        schedule.step(*first, return_outputs=False, **last)
        busy = _busy_seconds() - busy
        dist.barrier()
        whole = time.perf_counter() - start
        bubbles.append(1 - (busy if seconds is None else 3 * seconds * microbatches) / whole)
    return median(bubbles[1:])


def formula(name: str, ranks: int, microbatches: int) -> float | None:
    """The bubble of equal stages; None where a schedule cannot be or the formula is not meant for it."""
    possible = {"gpipe": True, "1f1b": microbatches >= ranks, "interleaved": microbatches % ranks == 0}
    if not possible[name]:
        return None
    return (ranks - 1) / (SCHEDULES[name] * microbatches + ranks - 1)


def _rank(rank: int, ranks: int, store: str, seconds: float | None, microbatches: list[int], end: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, ranks), rank=rank, world_size=ranks)
    for name in SCHEDULES:
        for count in microbatches:
            if formula(name, ranks, count) is not None:
                everyones: list[Any] = [None] * ranks
                dist.all_gather_object(everyones, measured(name, count, seconds))
                if rank == 0:
                    end.send((name, count, fmean(everyones)))
    dist.destroy_process_group()


def run(ranks: int, seconds: float | None, microbatches: list[int]) -> list[tuple[str, int, float]]:
    """Schedule, microbatches, bubble."""
    context = multiprocessing.get_context("fork")  # this process has imported torch and runs nothing
    ours, theirs = context.Pipe(duplex=False)
    with TemporaryDirectory() as folder:
        arguments = (ranks, os.path.join(folder, "store"), seconds, microbatches, theirs)
        processes = [context.Process(target=_rank, args=(rank, *arguments)) for rank in range(ranks)]
        for process in processes:
            process.start()
        theirs.close()
        found = []
        while True:
            try:
                found.append(ours.recv())
            except EOFError:
                break
        for process in processes:
            process.join()
    return found


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--microbatches", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--seconds", type=float, default=0.04, help="forward pass of all of a rank's stages")
    parser.add_argument("--compute", action="store_true", help="stages compute instead of waiting")
    options = parser.parse_args()
    print("| ranks | schedule | microbatches | bubble, measured | formula |\n|---|---|---|---|---|")
    for ranks in options.ranks:
        for name, count, bubble in run(ranks, None if options.compute else options.seconds, options.microbatches):
            print(f"| {ranks} | {name} | {count} | {bubble:.3f} | {formula(name, ranks, count):.3f} |", flush=True)


if __name__ == "__main__":
    main()
