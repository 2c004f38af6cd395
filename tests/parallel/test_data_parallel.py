"""ddp, zero1 and fsdp on real ranks: what a single process computes, and what each of them saves."""

import pytest
import torch

from effbench.worker.checkpoint import own, reload, save, stored
from tests.ranks import run_ranks

WAYS = ("ddp", "zero1", "fsdp", ("fsdp", {"reshard": False}))
LORA = ("lora", {"rank": 4})


def curves(here, stacks):
    """The losses of each stack, by a name for it."""
    return {name: here.trial(*arguments).trained().losses for name, arguments in stacks.items()}


def same_as_one_rank(stacks, size, rel):
    """Every rank's losses are those of a single process; these, and the first rank's."""
    [one], several = run_ranks(1, curves, stacks), run_ranks(size, curves, stacks)
    for name in stacks:
        assert all(rank[name] == several[0][name] for rank in several), name
        assert several[0][name] == pytest.approx(one[name], rel=rel), name
        assert one[name][-1] < 0.99 * one[name][1], f"{name} learned nothing, so nothing is proved"
    return one, several[0]


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_have_the_loss_curve_of_a_single_process(size):
    plain = {str(way): ([way],) for way in WAYS}
    same_as_one_rank(plain | {f"lora {way}": ([LORA, way],) for way in WAYS}, size, rel=1e-4)


def test_every_family_of_models_is_divided():
    same_as_one_rank({base: (["fsdp"], base) for base in ("gpt2", "bert", "t5")}, 2, rel=1e-4)


def test_sixteen_bits_are_near_the_same_stack_on_one_rank_and_are_not_the_same():
    stacks = {
        "autocast": ["mixed_precision", "fsdp"],
        "weights": [("fsdp", {"precision": "bfloat16"})],
        "gradients": [("ddp", {"compression": "bf16"})],
    }
    _, two = same_as_one_rank({name: (stack,) for name, stack in (stacks | {"none": ["fsdp"]}).items()}, 2, rel=2e-2)
    for name in stacks:
        assert two[name] != pytest.approx(two["none"], rel=1e-6), f"{name} in 16 bits change nothing"


def written(here, stack, folder):
    """Logits after training, and a checkpoint of it."""
    trial = here.trial(stack).trained()
    inference = trial.inference()
    logits = trial.logits(inference)
    if mine := own(stored(inference.model, trial.request.techniques, trial.context)):
        save(mine, folder / f"{here.world_size}.safetensors")
    return logits, sorted(mine)


def read(here, stack, file):
    """Logits of an untrained model, before and after it reads a checkpoint."""
    trial = here.trial(stack).made()
    inference = trial.inference()
    before = trial.logits(inference)
    reload(file, inference.model, trial.request.techniques, trial.context)
    return before, trial.logits(inference)


@pytest.mark.parametrize("stack", [["fsdp"], [LORA, "fsdp"], [("lora", {"merged": False}), "fsdp"], ["zero1"]], ids=str)
def test_a_checkpoint_of_one_world_size_is_read_at_another(stack, tmp_path):
    for size, others in ((2, (1, 4)), (1, (2,))):
        ranks = run_ranks(size, written, stack, tmp_path)
        assert [bool(names) for _, names in ranks] == [True] + [False] * (size - 1)
        for other in others:
            for before, after in run_ranks(other, read, stack, tmp_path / f"{size}.safetensors"):
                torch.testing.assert_close(after, ranks[0][0], atol=1e-5, rtol=1e-5)
                assert not torch.allclose(before, after, atol=1e-2), "nothing was trained, so nothing is proved"


SHARES = {"ddp": (1, 1), "zero1": (1, 1 / 2), "fsdp": (1 / 2, 1 / 2)}
"""Of the model's and the optimizer's bytes, what one of two ranks has."""


def figures(here):
    outcomes = {way: here.outcome([way], steps=3) for way in SHARES}
    return {way: {name: summary["median"] for name, summary in o.metrics.items()} for way, o in outcomes.items()}


def test_figures_are_those_of_one_rank_but_for_what_is_shared_out():
    [alone], ranks = run_ranks(1, figures), run_ranks(2, figures)
    for way, (model, optimizer) in SHARES.items():
        one, two = alone[way], [rank[way] for rank in ranks]
        for name in (
            "parameters.total",
            "parameters.trainable",
            "checkpoint.bytes",
            "checkpoint.delta_bytes",
            "train.final_loss",
        ):
            assert two[0][name] == pytest.approx(one[name], rel=1e-6), (way, name)
        for name in ("train.step_flops", "infer.prefill_flops", "infer.decode_token_flops"):
            assert sum(rank[name] for rank in two) == one[name], (way, name)
        held = {"train.model_bytes": model, "train.optimizer_state_bytes": optimizer, "infer.model_bytes": model}
        for name, share in held.items():
            assert max(rank[name] for rank in two) == pytest.approx(share * one[name], rel=0.02), (way, name)


def chosen(here):
    """Where a pruned model has zeros, on this rank."""
    trial = here.trial([("gradient_pruning", {"sparsity": 0.5}), "ddp"]).made()
    return {name: weight == 0 for name, weight in trial.model.named_parameters()}


def test_what_is_chosen_by_calibration_is_the_same_on_every_rank():
    [one], two = run_ranks(1, chosen), run_ranks(2, chosen)
    assert any(zeros.any() for zeros in one.values())
    for rank in two:
        assert all(torch.equal(rank[name], zeros) for name, zeros in one.items())
