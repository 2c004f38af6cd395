"""Shares of communication: intervals, made-up profiles, and two real ranks."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.multiprocessing
from effbench_plugins.data_parallel import DDP
from effbench_plugins.meters.communication import Communication, merged, shares

from effbench.plugin import Observation
from effbench.worker import defaults
from effbench.worker.ranks import Place, Rendezvous, join, listen
from tests.records import make_cell


def event(name, start, end, *, thread=1, device="CPU", annotation=False):
    return SimpleNamespace(
        name=name,
        time_range=SimpleNamespace(start=start, end=end),
        thread=thread,
        device_type=f"DeviceType.{device}",
        is_user_annotation=annotation,
    )


def passes(*ends):
    return [event("effbench.step", end - 100, end) for end in ends]


def test_intervals_are_united():
    assert merged([(5, 6), (0, 2), (1, 3), (3, 4)]) == [(0, 4), (5, 6)]
    assert merged([(0, 10), (2, 3), (4, 5)]) == [(0, 10)]


def test_overlapping_collectives_count_once_and_what_computing_covers_is_hidden():
    events = [
        *passes(100, 200),
        event("gloo:all_reduce", 110, 150, thread=2),
        event("gloo:all_reduce", 130, 170, thread=3),
        event("aten::mm", 100, 140),
        event("aten::copy_", 140, 165, thread=2),  # gloo's own
        event("c10d::allreduce_", 140, 165),  # starts it
        event("autograd::engine::evaluate_function: X", 100, 200),
    ]
    assert shares(events, cuda=False) == (0.6, 0.3)


def test_the_first_pass_is_given_up_and_what_outlives_a_pass_is_cut():
    events = [*passes(100, 200), event("gloo:all_reduce", 0, 100, thread=2), event("gloo:all_reduce", 190, 250, thread=2)]
    assert shares(events, cuda=False) == (0.1, 0.1)


def test_a_step_without_collectives_has_no_share():
    assert shares([*passes(100, 200), event("aten::mm", 100, 200)], cuda=False) == ()


def test_on_cuda_kernels_count_and_neither_calls_nor_annotations():
    events = [
        *passes(100, 200),
        event("effbench.step", 100, 200, device="CUDA", annotation=True),
        event("ncclDevKernel_AllReduce_Sum_f32_RING_LL", 120, 160, device="CUDA"),
        event("nccl:all_reduce", 120, 160, device="CUDA", annotation=True),
        event("sm90_gemm", 100, 150, device="CUDA"),
        event("aten::mm", 100, 200),
    ]
    assert shares(events, cuda=True) == (0.4, 0.1)


def test_a_single_rank_is_not_profiled():
    observation = Observation(make_cell(), "train", step=object(), batch={})
    assert Communication().probe(observation) == {}


def _rank(rank, port, found):
    torch.set_num_threads(1)
    ranks = join(Place(rank, rank, 2), Rendezvous("127.0.0.1", port), torch.device("cpu"), [DDP()])
    cell = make_cell(world_size=2)
    torch.manual_seed(0)
    model = torch.nn.Sequential(*[torch.nn.Linear(128, 128) for _ in range(3)])
    step = defaults.train_step(model, list(model.parameters()), cell)
    context = SimpleNamespace(mesh=ranks.mesh, device=torch.device("cpu"))
    step = DDP(bucket_mb=0.05).train(step, context)
    step = replace(step, loss=lambda model, batch: model(batch["x"]).square().mean())
    before = [p.clone() for p in model.parameters()]
    values = Communication().probe(Observation(cell, "train", step=step, batch={"x": torch.randn(64, 128)}, rank=rank))
    same = all(torch.equal(p, b) and p.grad is None for p, b in zip(model.parameters(), before, strict=True))
    found[rank] = {name: summary.median for name, summary in values.items()} | {"same": same}
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_see_their_collectives():
    store = listen("127.0.0.1")
    port = store.getsockname()[1]
    store.close()
    with torch.multiprocessing.Manager() as manager:
        found = manager.dict()
        torch.multiprocessing.spawn(_rank, (port, found), nprocs=2)
        for values in found.values():
            assert values["same"]
            share, exposed = values["train.communication_share"], values["train.exposed_communication_share"]
            assert 0 < exposed <= share <= 1
        assert len(found) == 2


@pytest.mark.parametrize("phase", ["load", "infer"])
def test_only_training_is_profiled(phase):
    assert Communication().probe(Observation(make_cell(world_size=2), phase)) == {}
