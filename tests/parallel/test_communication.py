"""Bytes that ranks exchange, exactly; and how long they wait."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from effbench_plugins.ddp import DDP
from effbench_plugins.meters.communication import Communication
from effbench_plugins.meters.exchanged import Exchanged
from torch import nn
from torch.distributed import _functional_collectives as functional

from effbench.plugin import Observation
from effbench.worker import defaults
from tests.ranks import run_ranks
from tests.records import make_cell
from tests.techniques.conftest import llama

WIDTH = 16
LAYER = 4 * (WIDTH * WIDTH + WIDTH)


def handed_over(here):
    """Bytes of this rank, by what it does."""
    here._join([DDP()])
    found = {}

    def count(name, action):
        action()  # the first pass sets up
        with Exchanged() as exchanged:
            action()
        found[name] = (exchanged.total, exchanged.unknown)

    def backward(model):
        return lambda: model(torch.ones(2, WIDTH)).sum().backward()

    layers = [nn.Linear(WIDTH, WIDTH) for _ in range(3)]
    wrapped = nn.parallel.DistributedDataParallel(nn.Sequential(*layers))
    backward(wrapped)()  # buckets are rebuilt in the second pass
    count("ddp", backward(wrapped))
    from torch.distributed.fsdp import fully_shard

    sharded = nn.Sequential(*[fully_shard(nn.Linear(WIDTH, WIDTH)) for _ in range(3)])
    count("fsdp", backward(sharded))

    x, other = torch.ones(8), torch.ones(8)

    def message():
        (dist.isend(x, 1) if here.rank == 0 else dist.irecv(x, 0)).wait()

    def both_ways():
        peer = 1 - here.rank
        for work in dist.batch_isend_irecv([dist.P2POp(dist.isend, x, peer), dist.P2POp(dist.irecv, other, peer)]):
            work.wait()

    count("message", message)
    count("both ways", both_ways)
    count("broadcast", lambda: dist.broadcast(x, 0))
    count("gather", lambda: dist.all_gather([torch.empty(8), torch.empty(8)], x))
    count("functional", lambda: functional.all_reduce(x, "sum", dist.group.WORLD) + 1)
    count("functional broadcast", lambda: functional.broadcast(x, 0, dist.group.WORLD) + 1)
    count("barrier", dist.barrier)
    return found


def test_bytes_are_those_of_the_tensors_that_go_in():
    first, second = run_ranks(2, handed_over)
    unknown = {name: what for found in (first, second) for name, (_, what) in found.items() if what}
    assert unknown == {"functional broadcast": {"broadcast"}}
    both = {name: (first[name][0], second[name][0]) for name in first}
    # FSDP gathers each layer once, half of it from each rank, and scatters its whole gradient.
    assert both["ddp"] == (3 * LAYER,) * 2
    assert both["fsdp"] == (3 * (LAYER // 2 + LAYER),) * 2
    assert both["message"] == both["broadcast"] == (32, 0)
    assert both["both ways"] == both["gather"] == both["functional"] == (32, 32)
    assert both["barrier"] == (0, 0)


def record(here, stack, layers):
    outcome = here.outcome(stack, layers, sampling={"max_seconds": 0.01})
    return {name: summary["median"] for name, summary in outcome.metrics.items()}


def llama8():
    return llama(layers=8)


def test_a_pipeline_sends_hidden_states_and_their_gradients_and_the_tied_gradient():
    options = {"schedule": "gpipe", "microbatches": 4}
    ranks = run_ranks(2, record, [("pipeline", options)], llama8)
    hidden, tied = 4 * 4 * 16 * 32, 4 * 256 * 32
    assert [rank["train.communication_bytes"] for rank in ranks] == [hidden + tied] * 2
    for rank in ranks:
        assert 0 <= rank["train.exposed_communication_share"] <= rank["train.communication_share"] <= 1
    assert all(0 < rank["train.idle_share"] < 0.5 for rank in ranks)


class Turn(nn.Module):
    """The second rank computes when the first one has: half of a pass each."""

    def __init__(self, rank):
        super().__init__()
        self.rank, self.weight = rank, nn.Parameter(torch.ones(()))

    def forward(self, x):
        token = torch.zeros(1)
        if self.rank == 1:
            dist.recv(token, 0)
        for _ in range(60):
            x = (x @ x.T).softmax(-1) * self.weight
        if self.rank == 0:
            dist.send(token, 1)
        return x.detach().sum() * self.weight


def waits(here):
    here._join([DDP()])
    model = Turn(here.rank)
    step = defaults.train_step(model, list(model.parameters()), make_cell(world_size=2))
    step = replace(step, loss=lambda model, batch: model(batch["x"]))
    observation = Observation(make_cell(world_size=2), "train", step=step, batch={"x": torch.rand(200, 200)}, rank=here.rank)
    before = model.weight.clone()
    found = Communication().probe(observation)
    assert torch.equal(model.weight, before)
    assert model.weight.grad is None
    return found["train.idle_share"].median


def test_ranks_that_take_turns_wait_half_of_the_time():
    assert sum(run_ranks(2, waits)) == pytest.approx(0.5, abs=0.15)
