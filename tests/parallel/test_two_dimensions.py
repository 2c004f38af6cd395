"""Stacks on a mesh of two dimensions, and parallel techniques beside what changes how a step is taken."""

import gc

import pytest
import torch

from tests.ranks import run_ranks, train_losses

PARTS = ("gradient_accumulation", {"microbatches": 2})


@pytest.fixture(scope="module")
def alone():
    return train_losses([], 1)


@pytest.mark.parametrize(
    "stack",
    [
        ["tensor_parallel", "fsdp"],
        ["context_parallel", "fsdp"],
        ["context_parallel", "zero1"],
        ["activation_checkpointing", "tensor_parallel", "fsdp"],
        [PARTS, "tensor_parallel", "fsdp"],
        ["activation_checkpointing", ("pipeline", {"microbatches": 2}), "ddp"],
    ],
    ids=lambda stack: "-".join(use if isinstance(use, str) else use[0] for use in stack),
)
def test_four_ranks_in_two_dimensions_train_as_one_process(alone, stack):
    assert train_losses(stack, 4) == pytest.approx(alone, rel=1e-4)


@pytest.mark.parametrize("parallel", ["fsdp", "zero1", "tensor_parallel", "context_parallel"])
def test_accumulation_over_recomputed_layers_trains_as_one_process(alone, parallel):
    assert train_losses([PARTS, "activation_checkpointing", parallel], 2) == pytest.approx(alone, rel=1e-4)


def bytes_alive(here, stack):
    """Of all plain tensors of this process, once a stack is applied."""
    trial = here.trial(stack).made()
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, torch.nn.Parameter)]
    assert list(trial.model.parameters())  # alive until here
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


@pytest.mark.parametrize("stack", [["fsdp"], ["tensor_parallel"], ["pipeline"]])
def test_a_rank_does_not_keep_the_whole_model(stack):
    [whole] = run_ranks(1, bytes_alive, [])
    assert max(run_ranks(2, bytes_alive, stack)) < 0.7 * whole
