"""The precision family: loss parity with float32, master weights, skipped steps, float8 training as torchao emulates it."""

from dataclasses import replace
from functools import cache

import pytest
import torch
import torch.distributed as dist
from effbench_plugins import fp8_training
from torch import nn

from effbench.plugin import InputError
from effbench.worker import defaults
from effbench.worker.trial import TrialRequest, run
from tests.records import make_cell
from tests.techniques.conftest import CATALOG, Harness, cell_of, gpt2, llama, logits_of, random_batch
from tests.techniques.test_stacks import refusal
from tests.techniques.test_training import assert_same_gradients, padded_batch, stepped

IDS = torch.randint(1, 256, (2, 12), generator=torch.Generator().manual_seed(5))
STEPS = 10


def technique(name, **options):
    return CATALOG.technique(name, options)


HALF = {"dtype": "float16"}


@cache
def real_losses(*names):
    """The shipped model's losses over ten steps of real text, through the trial itself."""
    options = {"fp16": ("mixed_precision", HALF)}
    pairs = [options.get(name, (name, {})) for name in names]
    source, workload = CATALOG.model("tiny-llama"), CATALOG.workload("docs")
    sizes = {"steps": STEPS, "seq_len": 32, "batch_size": 2, "facts": source.facts(), "phases": ("train",), "lr": 3e-4}
    cell = make_cell(**sizes, techniques=tuple(pairs))
    techniques = [CATALOG.technique(name, given) for name, given in pairs]
    outcome = run(
        TrialRequest(
            cell=cell,
            seed=1,
            techniques=techniques,
            source=source,
            workload=workload,
            meters=[CATALOG.meters.get("loss")()],
            phase_skips={"infer": "not asked for"},
            split="validation",
        ),
        announce=lambda phase: None,
    )
    assert outcome.status == "ok", outcome.error
    return outcome.samples["samples"]["loss"], outcome.metrics


@pytest.mark.parametrize("name", ["mixed_precision", "fp16"])
def test_autocast_follows_float32s_losses_on_real_text(name):
    ours, metrics = real_losses(name)
    reference, _ = real_losses()
    assert len(ours) == STEPS
    assert ours == pytest.approx(reference, rel=2e-2)
    assert ours != reference
    assert metrics["train.final_loss"]["median"] == ours[-1]
    assert metrics.get("mixed_precision.skipped_steps", {}).get("median") == (0.0 if name == "fp16" else None)


def test_pure_bfloat16_is_further_from_float32_than_autocast():
    """Its updates are rounded to bfloat16 as well; the record's final loss says by how much that changed it."""
    pure, _ = real_losses("bf16")
    autocast, _ = real_losses("mixed_precision")
    reference, _ = real_losses()

    def off(losses):
        return sum(abs(ours - theirs) for ours, theirs in zip(losses, reference, strict=True))

    assert off(pure) > off(autocast)


def test_pure_bfloat16_trains_and_is_so_all_through():
    harness = Harness(llama, [technique("bf16")], steps=5)
    step, batch = harness.step(), random_batch()
    losses = [float(step.run(batch)) for _ in range(5)]
    assert losses == sorted(losses, reverse=True)
    assert {p.dtype for p in harness.model.parameters()} == {torch.bfloat16}
    assert {state["exp_avg"].dtype for state in step.optimizer.state.values()} == {torch.bfloat16}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    "others",
    [
        ["lora"],
        ["nf4", "lora"],
        ["int8_weight_only_first", "lora"],
        ["int8_weight_only"],
        ["gradient_accumulation"],
        ["activation_checkpointing"],
        ["adamw8bit"],
    ],
    ids="-".join,
)
def test_what_is_trained_stays_in_float32(others, dtype):
    first = {"int8_weight_only_first": ("int8_weight_only", {"at": "apply"})}
    pairs = [first.get(name, (name, {})) for name in others]
    stack = [technique(name, **options) for name, options in pairs]
    harness = Harness(llama, [*stack, technique("mixed_precision", dtype=dtype)])
    before = {name: p.detach().clone() for name, p in harness.model.named_parameters() if p.requires_grad}
    losses = harness.train(3)
    after = dict(harness.model.named_parameters())
    assert losses == pytest.approx(Harness(llama, stack).train(3), rel=2e-2)
    assert {after[name].dtype for name in before} == {torch.float32}
    assert all(not torch.equal(after[name], old) for name, old in before.items())
    assert torch.isfinite(logits_of(harness.infer(), IDS)).all()


@pytest.mark.parametrize("half_first", [True, False])
def test_float16_scales_parts_of_a_batch_alike_and_unscales_once(half_first):
    stack = [technique("mixed_precision", **HALF), technique("gradient_accumulation")]
    step, loss = stepped(llama, stack if half_first else stack[::-1])
    reference, expected = stepped(llama, [])
    torch.testing.assert_close(loss, expected, rtol=2e-3, atol=0)
    for parameter in step.model.parameters():
        parameter.grad /= 2.0**16  # the scale GradScaler begins with
    assert_same_gradients(step, reference, tolerance=2e-3)
    step, _ = stepped(llama, stack if half_first else stack[::-1])
    step.update(step)  # raises if anything were unscaled twice


def overflowing(step, at):
    """The step with a loss that overflows in the steps named."""
    number, loss = iter(range(100)), step.loss
    return replace(step, loss=lambda model, batch: loss(model, batch) * (1e38 if next(number) in at else 1.0))


def test_skipped_steps_are_counted():
    harness, half = Harness(llama, []), technique("mixed_precision", **HALF)
    step = half.train(overflowing(harness.step(), {0, 2}), harness.context)
    assert half.counted(harness.context) == {"mixed_precision.skipped_steps": 0}
    moved = []
    for _ in range(4):
        before = [p.detach().clone() for p in harness.model.parameters()]
        step.run(padded_batch())
        moved.append(not all(torch.equal(p, b) for p, b in zip(harness.model.parameters(), before, strict=True)))
    assert moved == [False, True, False, True]
    assert half.counted(harness.context) == {"mixed_precision.skipped_steps": 2}
    assert {metric.name for metric in half.metrics} == set(half.counted(harness.context))


def test_bfloat16_counts_no_skipped_steps():
    harness = Harness(llama, [technique("mixed_precision")])
    harness.train()
    assert harness.techniques[0].counted(harness.context) == {}


def _skips_on_a_rank(rank, folder):
    """Rank 1's own part of the weights overflows in its second step; nobody exchanges gradients here."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    harness, half = Harness(llama, []), technique("mixed_precision", **HALF)
    context = replace(harness.context, rank=rank, world_size=2)
    step = half.train(overflowing(harness.step(), {1} if rank == 1 else set()), context)
    moved = []
    for _ in range(3):
        before = harness.model.lm_head.weight.detach().clone()
        step.run(random_batch())
        moved.append(not torch.equal(harness.model.lm_head.weight, before))
    counted = half.counted(context)["mixed_precision.skipped_steps"]
    (folder / f"{rank}").write_text(f"{moved} {counted}")
    dist.destroy_process_group()


def test_ranks_skip_a_step_together(tmp_path):
    logits_of(Harness(llama, []).infer(), IDS)  # what is imported and saved once is there in both
    torch.multiprocessing.start_processes(_skips_on_a_rank, (tmp_path,), nprocs=2, start_method="fork")
    assert [(tmp_path / f"{rank}").read_text() for rank in range(2)] == ["[True, False, True] 1"] * 2


def test_autocast_is_on_while_the_loss_calls_the_model():
    """By which a technique that replaces `forward_backward` finds it."""
    seen = []

    class Probe(nn.Module):
        def forward(self, **batch):
            seen.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None)
            return type("Output", (), {"loss": torch.zeros(())})

    for dtype in ("bfloat16", "float16"):
        harness = Harness(llama, [technique("mixed_precision", dtype=dtype)])
        step = harness.step()
        step.loss(Probe(), random_batch())
    assert seen == [torch.bfloat16, torch.float16]


# float8 training


@pytest.fixture
def emulated(monkeypatch):
    """Float8 values multiplied in float32, as torchao does it where there are no units for it."""
    original = fp8_training.recipe
    monkeypatch.setattr(fp8_training, "recipe", lambda scale: replace(original(scale), emulate=True))


def float8_layers(model):
    from torchao.float8.float8_linear import Float8Linear

    return {name for name, layer in model.named_modules() if isinstance(layer, Float8Linear)}


@pytest.mark.parametrize("scale", ["tensor", "row"])
@pytest.mark.parametrize("base", [llama, gpt2], ids=["llama", "gpt2"])
def test_float8_follows_float32s_losses(emulated, base, scale):
    harness = Harness(base, [technique("fp8_training", scale=scale)])
    assert len(float8_layers(harness.model)) == (14 if base is llama else 8)
    assert not any("lm_head" in name for name in float8_layers(harness.model))
    ours, reference = harness.train(4), Harness(base, []).train(4)
    assert ours == pytest.approx(reference, rel=5e-2)
    assert ours != reference
    assert {p.dtype for p in harness.model.parameters()} == {torch.float32}


def test_after_float8_training_the_layers_are_plain_again(emulated):
    harness = Harness(llama, [technique("fp8_training")])
    trained = {name: p.detach().clone() for name, p in harness.model.named_parameters()}
    model = harness.infer().model
    assert not float8_layers(model)
    assert all(torch.equal(p, trained[name]) for name, p in model.named_parameters())
    assert model.state_dict().keys() == llama().state_dict().keys()


@pytest.mark.parametrize("order", [["fp8_training", "lora"], ["lora", "fp8_training"]])
def test_adapters_train_beside_float8_products(emulated, order):
    harness = Harness(llama, [technique(name) for name in order])
    assert len(float8_layers(harness.model)) == 14
    assert all(name.endswith("base_layer") for name in float8_layers(harness.model))
    assert all(torch.isfinite(torch.tensor(harness.train(3))))
    assert not any("lora" in name for name in harness.infer().model.state_dict())


def test_layers_that_do_not_fit_float8_units_are_left_alone(emulated):
    one = technique("fp8_training")
    model = nn.ModuleDict({"fits": nn.Linear(32, 48), "narrow": nn.Linear(32, 24), "short": nn.Linear(40, 32)})
    assert float8_layers(one.apply(model, None)) == {"fits"}
    with pytest.raises(InputError, match="multiples of 16"):
        one.apply(nn.ModuleDict({"narrow": nn.Linear(32, 24)}), None)


def test_float8_training_says_why_it_cannot_be():
    cell = cell_of(llama)
    assert "CUDA device of compute capability 8.9" in technique("fp8_training").unsupported(cell)
    cuda = cell.model_copy(update={"device": "cuda"})
    assert technique("fp8_training").unsupported(cuda) is None
    assert "bfloat16 weights" in technique("fp8_training", scale="row").unsupported(cuda)
    assert "which nf4 converts" in refusal("nf4", "fp8_training")
    assert "which nf4 converts" in refusal("fp8_training", "nf4")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_float8_units_give_what_is_emulated(dtype, monkeypatch):
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("no float8 units")
    found = []
    for emulate in (False, True):
        original = fp8_training.recipe
        monkeypatch.setattr(fp8_training, "recipe", lambda scale, o=original, e=emulate: replace(o(scale), emulate=e))
        model = llama(hidden=128).to("cuda", getattr(torch, dtype))
        model = technique("fp8_training", scale="row" if dtype == "bfloat16" else "tensor").apply(model, None)
        batch = {name: tensor.cuda() for name, tensor in padded_batch().items()}
        step = defaults.train_step(model.train(), list(model.parameters()), cell_of(llama))
        found.append([float(step.run(batch)) for _ in range(3)])
    assert found[0] == pytest.approx(found[1], rel=1e-2)
