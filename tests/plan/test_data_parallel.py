"""Stacks with fsdp that would be silently wrong, or would fail, are refused when a suite is planned; and what is predicted."""

import pytest

from effbench.plan.memory import untouched_bytes
from effbench.plan.reasons import why_no_cell
from effbench.plugin.discovery import discover
from tests.records import make_cell

CATALOG = discover()


def reason(*stack, **fields):
    techniques = [CATALOG.technique(*((use, {}) if isinstance(use, str) else use)) for use in stack]
    return why_no_cell(make_cell(batch_size=4, world_size=2, data_ranks=2, parallel={"fsdp": 2}, **fields), techniques)


@pytest.mark.parametrize(
    ("stack", "words"),
    [
        (["fsdp", "lora"], "list it behind lora"),
        (["fsdp", "structured_pruning"], "list it behind structured_pruning"),
        (["fsdp", "int8_weight_only"], "use ddp or zero1"),
        (["int8_weight_only", "fsdp"], "use ddp or zero1"),
        (["nf4", "lora", "fsdp"], "use ddp or zero1"),
        (["magnitude_pruning", "fsdp"], "use ddp or zero1"),
        ([("structured_pruning", {"at": "infer"}), "fsdp"], "use ddp or zero1"),
        (["ia3", "fsdp"], "set merged = false"),
        ([("lora", {"dora": True}), "fsdp"], "set merged = false"),
        ([("lora", {"adalora": True}), "fsdp"], "needs whole weights"),
        (["ddp", "fsdp"], "both set the mesh dimension dp"),
        (["fsdp", "zero1"], "both set the mesh dimension dp"),
        ([("fsdp", {"offload": True})], "leave it out"),
    ],
    ids=str,
)
def test_what_fsdp_cannot_stand_beside_is_refused_with_what_to_do(stack, words):
    assert words in reason(*stack)


@pytest.mark.parametrize(
    "stack",
    [
        ["lora", "fsdp"],
        ["structured_pruning", "fsdp"],
        ["distillation", "fsdp"],
        ["fsdp", "mixed_precision"],
        [("ia3", {"merged": False}), "fsdp"],
        [("lora", {"dora": True, "merged": False}), "fsdp"],
    ],
    ids=str,
)
def test_what_it_can_stand_beside_is_planned(stack):
    assert reason(*stack) is None


def test_offloading_is_planned_on_cuda():
    assert reason(("fsdp", {"offload": True}), device="cuda") is None


def test_predicted_memory_falls_with_ranks_and_names_what_stays_whole():
    def saved(name, ranks, phase="train", **options):
        return CATALOG.technique(name, options).memory(make_cell(data_ranks=ranks), phase)

    cell = make_cell()
    weights = cell.weight_bytes
    assert saved("ddp", 4) == saved("zero1", 1) == saved("fsdp", 1) == saved("zero1", 4, "infer") == 0
    assert saved("zero1", 4) == -2 * weights * 3 / 4
    assert -3 * weights < saved("fsdp", 4) < saved("zero1", 4)
    assert saved("fsdp", 4) < saved("fsdp", 4, reshard=False)
    assert -untouched_bytes(cell, "infer") < saved("fsdp", 4, "infer") < 0
    assert saved("fsdp", 4, precision="bfloat16") is None
