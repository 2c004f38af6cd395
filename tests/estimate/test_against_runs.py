"""Estimates against real trials at a small size: peak memory within 10 %; what is countable, exactly."""

import pytest

from tests.estimate.measured import cell_of, estimate, measure

SHAPE = {"seq_len": 512, "batch_size": 4}
MODEL = "tiny-decoder:4x512x8"  # some 15 MB of code and libraries come with the first step: the rest should outweigh them
STACKS = {
    "untouched": [],
    "lora": ["lora"],
    "bitfit": ["bitfit"],
    "mixed_precision": ["mixed_precision"],
    "activation_checkpointing": ["activation_checkpointing"],
    "ddp": ["ddp"],
    "fsdp": ["fsdp"],
}


@pytest.mark.parametrize("stack", STACKS)
def test_the_peak_of_a_step_is_within_a_tenth_of_the_measured_one(stack):
    ranks = {"world_size": 2, "data_ranks": 2, "batch_size": 8} if stack in {"ddp", "fsdp"} else {}
    cell = cell_of(MODEL, STACKS[stack], **(SHAPE | ranks))
    measured = measure(cell)[0]
    found = estimate(cell).ranks[0]
    assert found.train.peak == pytest.approx(measured["train.peak_memory_bytes"], rel=0.1)
    assert found.train.weights == pytest.approx(measured["train.model_bytes"], rel=1e-4)
    assert found.train.optimizer_state == pytest.approx(measured["train.optimizer_state_bytes"], rel=0.01)
    assert found.train.work.flops == measured["train.step_flops"]


# How many of a pipeline's messages are in flight at its peak depends on how busy the machine is besides.
@pytest.mark.parametrize(("stack", "tolerance"), [("tensor_parallel", 0.1), ("pipeline", 0.15)])
def test_so_is_that_of_a_rank_with_a_part_of_the_model(stack, tolerance):
    cell = cell_of("plain-decoder:4x512x8", [stack], world_size=2, parallel={stack: 2}, **SHAPE)
    measured = [rank["train.peak_memory_bytes"] for rank in measure(cell)]
    found = [rank.train.peak for rank in estimate(cell).ranks]
    assert found == pytest.approx(measured[: len(found)], rel=tolerance)
