"""How a step is taken: checkpointing of activations, accumulation of gradients, 8-bit optimizer states."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from effbench_plugins.meters.flops import Flops
from effbench_plugins.meters.state import State
from torch.distributed.device_mesh import init_device_mesh

from effbench.plan.memory import untouched_bytes
from effbench.plugin import Observation
from effbench.worker import defaults
from tests.techniques.conftest import BASES, CATALOG, Harness, llama, random_batch
from tests.techniques.test_stacks import refusal


def wide_llama():
    """Most of its tensors are large enough for what is done to large ones."""
    return llama(hidden=128)


def technique(name, **options):
    return CATALOG.technique(name, options)


def stepped(base, stack, batch=None):
    """The step of a stack, one forward and backward pass of it, and the loss."""
    step = Harness(base, stack).step()
    torch.manual_seed(2)
    return step, step.forward_backward(step, batch or padded_batch())


def padded_batch(rows=4):
    """Rows of unequal length: what is predicted in each differs."""
    ids = torch.randint(1, 256, (rows, 16), generator=torch.Generator().manual_seed(7))
    labels, mask = ids.clone(), torch.ones_like(ids)
    for row in range(rows):
        labels[row, 16 - 3 * row :], mask[row, 16 - 3 * row :] = -100, 0
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def gradients(step):
    return {name: p.grad for name, p in step.model.named_parameters() if p.grad is not None}


def assert_same_gradients(ours, reference, tolerance=1e-6):
    ours, reference = gradients(ours), gradients(reference)
    assert ours.keys() == reference.keys() != set()
    for name in ours:
        torch.testing.assert_close(ours[name], reference[name], atol=tolerance, rtol=1e-4)


@contextmanager
def kept_bytes():
    """Bytes that autograd holds at most for the backward pass, each piece of memory once."""
    held, peak, sizes = {}, [0], {}

    class Kept:
        def __init__(self, tensor):
            self.tensor, self.key = tensor, tensor.untyped_storage().data_ptr()
            held[self.key] = held.get(self.key, 0) + 1
            sizes[self.key] = tensor.untyped_storage().nbytes()
            peak[0] = max(peak[0], sum(sizes[key] for key in held))

        def __del__(self):
            held[self.key] -= 1
            if not held[self.key]:
                del held[self.key]

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        yield peak


def peak_of(stack, batch):
    with kept_bytes() as peak:
        stepped(llama, stack, batch)
    return peak[0]


# Activation checkpointing


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("base", BASES)
def test_checkpointing_changes_no_gradient(base, every):
    ours, loss = stepped(BASES[base], [technique("activation_checkpointing", every=every)])
    reference, expected = stepped(BASES[base], [])
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=0)
    assert_same_gradients(ours, reference)


@pytest.mark.parametrize("every", [1, 2])
def test_as_many_layers_are_run_twice_as_are_checkpointed(every):
    def calls(stack):
        harness, counted = Harness(llama, stack), [0, 0]
        for number, layer in enumerate(harness.model.model.layers):
            layer.mlp.register_forward_pre_hook(lambda *_, n=number: counted.__setitem__(n, counted[n] + 1))
        harness.train(1)
        return counted

    assert calls([]) == [1, 1]
    assert calls([technique("activation_checkpointing", every=every)]) == ([2, 2] if every == 1 else [2, 1])


def test_checkpointed_layers_keep_their_input_and_no_more():
    batch = {name: tensor.repeat(4, 4) for name, tensor in random_batch().items()}
    whole, half, least = (
        peak_of([] if every is None else [technique("activation_checkpointing", every=every)], batch) for every in (None, 2, 1)
    )
    assert least < half < whole
    assert least < 0.6 * whole  # the logits stay


def test_recomputation_is_counted_as_work():
    """Forward and backward are three forward passes; with recomputation nearly four: a layer's last product is not needed."""

    def flops(stack):
        step, _ = stepped(llama, stack)
        observation = Observation(Harness(llama, []).cell, "train", model=step.model, step=step, batch=padded_batch())
        return Flops().probe(observation)["train.step_flops"].median

    assert 1.15 < flops([technique("activation_checkpointing")]) / flops([]) < 4 / 3


def test_dropout_draws_the_same_again():
    def with_dropout(stack):
        lora = technique("lora", rank=4, dropout=0.5)
        return stepped(llama, [lora, *stack])[0]

    def up(step):  # B starts at 0, so that only it has a gradient, and that depends on what A's input lost
        return {name: g for name, g in gradients(step).items() if "lora_B" in name}

    ours, reference = with_dropout([technique("activation_checkpointing")]), with_dropout([])
    assert all(torch.equal(up(ours)[name], g) for name, g in up(reference).items())
    assert all(g.abs().sum() > 0 for g in up(ours).values())


def test_frozen_embeddings_do_not_stop_the_gradient():
    """Adapters in the first checkpointed layer have inputs that ask for no gradient."""
    for stack in (["lora", "activation_checkpointing"], ["activation_checkpointing", "nf4", "lora"]):
        step, _ = stepped(llama, [technique(name) for name in stack])
        assert all(p.grad is not None for p in step.model.parameters() if p.requires_grad)


def test_evaluation_and_its_cache_are_untouched():
    harness = Harness(llama, [technique("activation_checkpointing")])
    harness.train()
    inference, ids = harness.infer(), random_batch()["input_ids"]
    _, cache = inference.prefill(inference, ids, torch.ones_like(ids))
    assert cache.get_seq_length() == ids.shape[1]


def test_a_cache_that_trains_is_refused_when_planned():
    assert "both set training cache" in refusal("prefix_tuning", "activation_checkpointing")
    assert refusal("prompt_tuning", "activation_checkpointing") is None


def test_checkpointing_needs_layers():
    cell = Harness(llama, []).cell
    bare = cell.model_copy(update={"facts": cell.facts.model_copy(update={"intermediate": 0})})
    assert "nothing to recompute" in technique("activation_checkpointing").unsupported(bare)


# Gradient accumulation


@pytest.mark.parametrize("microbatches", [2, 4])
@pytest.mark.parametrize("base", ["llama", "bert", "t5"])  # GPT-2's dropout draws anew for each part
def test_parts_of_a_batch_give_the_whole_batchs_gradient_under_padding(base, microbatches):
    ours, loss = stepped(BASES[base], [technique("gradient_accumulation", microbatches=microbatches)])
    reference, expected = stepped(BASES[base], [])
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-6)
    assert_same_gradients(ours, reference)


def test_a_part_in_which_nothing_is_predicted_counts_nothing():
    batch = padded_batch()
    batch["labels"][2:] = -100
    ours, loss = stepped(llama, [technique("gradient_accumulation")], batch)
    reference, expected = stepped(llama, [], batch)
    torch.testing.assert_close(loss, expected)
    assert_same_gradients(ours, reference)


def test_a_part_of_the_batch_is_in_memory_at_a_time():
    batch = {name: tensor.repeat(4, 2) for name, tensor in random_batch().items()}
    whole, part = (peak_of(stack, batch) for stack in ([], [technique("gradient_accumulation", microbatches=4)]))
    assert part < 0.5 * whole  # weights are held as well


def test_parts_must_be_equal():
    cell = Harness(llama, []).cell.model_copy(update={"batch_size": 8, "data_ranks": 2})
    assert technique("gradient_accumulation", microbatches=4).unsupported(cell) is None
    reason = technique("gradient_accumulation", microbatches=3).unsupported(cell)
    assert reason == "a rank's batch of 4 sequences cannot be taken in 3 equal parts"


class _Exchanging(torch.nn.Module):
    """A wrapper that ranks exchange gradients through, as DDP is."""

    def __init__(self, model):
        super().__init__()
        self.model, self.exchanges, self.quiet = model, [], False

    def forward(self, **batch):
        self.exchanges.append(not self.quiet)
        return self.model(**batch)

    @contextmanager
    def no_sync(self):
        self.quiet = True
        yield
        self.quiet = False


class _Sharded(_Exchanging):
    """As FSDP2 is."""

    no_sync = None

    def set_requires_gradient_sync(self, wanted):
        self.quiet = not wanted


@pytest.mark.parametrize("kind", [_Exchanging, _Sharded])
def test_ranks_exchange_gradients_once(kind):
    harness = Harness(llama, [])
    step = defaults.train_step(kind(harness.model), list(harness.model.parameters()), harness.cell)
    step = technique("gradient_accumulation", microbatches=4).train(step, harness.context)
    step.run(padded_batch())
    assert step.model.exchanges == [False, False, False, True]


def _accumulates_on_a_rank(rank, folder):
    """Gradients after one step on this rank's rows, in one part and in two."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("dp",))
    rows = {name: tensor[rank::2] for name, tensor in padded_batch(8).items()}
    found = []
    for parts in (1, 2):
        harness = Harness(llama, [technique("ddp"), technique("gradient_accumulation", microbatches=parts)])
        harness.context = replace(harness.context, rank=rank, world_size=2, mesh=mesh)
        step = harness.step()
        step.forward_backward(step, rows)
        found.append(gradients(step))
    torch.save(found, folder / f"{rank}")
    dist.destroy_process_group()


def test_under_ddp_parts_give_the_gradient_that_ranks_agree_on(tmp_path):
    stepped(llama, [])  # what is imported and saved once is there in both
    torch.multiprocessing.start_processes(_accumulates_on_a_rank, (tmp_path,), nprocs=2, start_method="fork")
    (whole, parts), (of_other, _) = (torch.load(tmp_path / f"{rank}", weights_only=True) for rank in range(2))
    assert whole
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, atol=1e-6, rtol=1e-4)
        assert torch.equal(of_other[name], gradient)


def test_accumulation_goes_around_a_loss_that_others_changed():
    """Distillation's parts count by the same tokens."""
    for order in (["distillation", "gradient_accumulation"], ["gradient_accumulation", "distillation"]):
        _, loss = stepped(llama, [technique(name) for name in order])
        _, expected = stepped(llama, [technique("distillation")])
        torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["activation_checkpointing", "gradient_accumulation"])
def test_the_plan_expects_less_memory_in_training_alone(name):
    cell = Harness(llama, []).cell
    more = technique(name).memory(cell, "train")
    assert -untouched_bytes(cell, "train") < more < 0
    assert technique(name).memory(cell, "infer") == 0
    longer = cell.model_copy(update={"seq_len": 2 * cell.seq_len})
    assert technique(name).memory(longer, "train") == pytest.approx(2 * more)


def test_more_than_one_of_them_at_once():
    stack = [technique(name) for name in ("activation_checkpointing", "gradient_accumulation")]
    ours, _ = stepped(llama, stack)
    assert_same_gradients(ours, stepped(llama, [])[0])


# 8-bit AdamW


def test_eight_bit_moments_follow_adamw_closely():
    plain, eight = (Harness(wide_llama, stack, steps=10, lr=1e-3) for stack in ([], [technique("adamw8bit")]))
    ours, reference = eight.train(10), plain.train(10)
    assert ours == pytest.approx(reference, rel=2e-2)
    assert ours != reference


def test_the_state_of_large_tensors_falls_to_a_quarter():
    def state(stack):
        harness = Harness(wide_llama, stack)
        step = harness.step()
        step.run(random_batch())
        observation = Observation(harness.cell, "train", model=step.model, step=step)
        return State().end(observation)["train.optimizer_state_bytes"].median

    small = sum(p.numel() for p in wide_llama().parameters() if p.numel() < 4096)
    large = sum(p.numel() for p in wide_llama().parameters() if p.numel() >= 4096)
    expected = 8 * small + 2 * large * (1 + 4 / 256)
    assert state([technique("adamw8bit")]) == pytest.approx(expected, abs=2 * 256 * 4)  # the two tables of codes
    assert 0.24 < state([technique("adamw8bit")]) / state([]) < 0.27


@pytest.mark.parametrize("base", ["float32", "bfloat16"])
def test_learning_rates_fall_as_they_would(base):
    stack = [technique("adamw8bit")] + ([technique("bf16")] if base == "bfloat16" else [])
    ours, reference = Harness(llama, stack, steps=4).step(), Harness(llama, [], steps=4).step()
    for _ in range(4):
        for step in (ours, reference):
            step.run(random_batch())
        assert ours.optimizer.param_groups[0]["lr"] == reference.optimizer.param_groups[0]["lr"]


@pytest.mark.parametrize("order", [["adamw8bit", "lora"], ["lora", "adamw8bit"]])
def test_adalora_finds_the_optimizer_that_steps(order):
    options = {"lora": {"adalora": True, "rank": 2}, "adamw8bit": {}}
    harness = Harness(llama, [technique(name, **options[name]) for name in order], steps=8)
    harness.train(8)
    ranks = [int((p != 0).sum()) for name, p in harness.model.named_parameters() if "lora_E" in name]
    assert sum(ranks) == 2 * len(ranks)  # of 3 in the beginning


def test_two_optimizers_are_refused_when_planned():
    assert "both set optimizer" in refusal("adamw8bit", "adamw8bit")
