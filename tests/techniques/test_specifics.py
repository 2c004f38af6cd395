"""What is special about each of the first techniques, and about their stacks."""

import pytest
import torch
from torch import nn

from tests.techniques.conftest import CATALOG, Harness, llama, logits_of

IDS = torch.randint(1, 256, (2, 12), generator=torch.Generator().manual_seed(5))


def technique(name, **options):
    return CATALOG.technique(name, options)


def linear_layers(model):
    return {n: m for n, m in model.named_modules() if type(m) is nn.Linear and "lm_head" not in n}


def test_lora_trains_exactly_rank_times_m_plus_n():
    harness = Harness(llama, [technique("lora", rank=4)])
    expected = sum(4 * (m.in_features + m.out_features) for m in linear_layers(llama()).values())
    assert sum(p.numel() for p in harness.model.parameters() if p.requires_grad) == expected


@pytest.mark.parametrize("options", [{}, {"rslora": True}, {"dora": True}, {"target_modules": ("q_proj", "v_proj")}])
def test_merged_lora_equals_unmerged_and_leaves_nothing_of_peft(options):
    merged = Harness(llama, [technique("lora", rank=4, **options)])
    unmerged = Harness(llama, [technique("lora", rank=4, merged=False, **options)])
    assert merged.train(4) == unmerged.train(4)
    one, other = merged.infer(), unmerged.infer()
    torch.testing.assert_close(logits_of(one, IDS), logits_of(other, IDS), atol=1e-4, rtol=1e-4)
    assert not torch.equal(logits_of(one, IDS), llama()(IDS).logits)
    assert all("lora" not in name for name, _ in one.model.named_modules())


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("at", ["apply", "infer"])
def test_pruning_reaches_its_sparsity_and_keeps_it_through_training(scope, at):
    harness = Harness(llama, [technique("magnitude_pruning", sparsity=0.6, scope=scope, at=at)])
    harness.train(3)
    layers = linear_layers(harness.infer().model).values()
    zeros, total = sum(int((m.weight == 0).sum()) for m in layers), sum(m.weight.numel() for m in layers)
    assert zeros / total == pytest.approx(0.6, abs=0.002)
    shares = [float((m.weight == 0).float().mean()) for m in layers]
    if scope == "layer":
        assert all(share == pytest.approx(0.6, abs=0.01) for share in shares)
    else:
        assert max(shares) - min(shares) > 0.001


def test_pruning_leaves_embeddings_and_head_whole():
    model = Harness(llama, [technique("magnitude_pruning", sparsity=0.9)]).infer().model
    assert int((model.get_input_embeddings().weight == 0).sum()) == 0


def test_lora_behind_pruning_leaves_the_zeros_of_the_frozen_weights():
    stack = [technique("magnitude_pruning", sparsity=0.5), technique("lora", rank=4, merged=False)]
    harness = Harness(llama, stack)
    harness.train(3)
    base = [m.weight for n, m in harness.infer().model.named_modules() if n.endswith("base_layer")]
    assert base
    assert sum(int((w == 0).sum()) for w in base) / sum(w.numel() for w in base) == pytest.approx(0.5, abs=0.002)


def test_int8_is_about_a_quarter_on_disk_and_near_in_its_logits():
    from effbench.worker.checkpoint import _tensors

    harness = Harness(llama, [technique("int8_dynamic")])
    reference = llama()(IDS).logits
    linear_bytes = sum(4 * m.weight.numel() for m in linear_layers(llama()).values())
    inference = harness.infer()
    stored = technique("int8_dynamic").store(_tensors(inference.model), harness.context)
    int8_bytes = sum(t.numel() for name, t in stored.items() if name.endswith("weight_int8"))
    assert int8_bytes == linear_bytes / 4
    error = (logits_of(inference, IDS) - reference).abs().mean() / reference.abs().mean()
    assert 0 < error < 0.05


def test_int8_before_training_skips_training_with_the_reason():
    early = technique("int8_dynamic", at="apply")
    harness = Harness(llama, [early])
    assert "cannot be trained" in early.unsupported_phase(harness.cell, "train")
    assert early.unsupported_phase(harness.cell, "infer") is None


def test_the_stack_of_three_runs_in_order():
    stack = [technique("magnitude_pruning"), technique("lora", rank=4), technique("int8_dynamic")]
    harness = Harness(llama, stack)
    assert len(harness.train(3)) == 3
    inference = harness.infer()
    assert any("quantized" in type(m).__module__ for m in inference.model.modules())
    assert torch.isfinite(logits_of(inference, IDS)).all()


def test_bf16_follows_the_float32_loss_and_keeps_float32_weights():
    plain, mixed = Harness(llama, []), Harness(llama, [technique("mixed_precision")])
    for one, other in zip(plain.train(4), mixed.train(4), strict=True):
        assert other == pytest.approx(one, rel=2e-2)
        assert other != one
    assert {p.dtype for p in mixed.model.parameters()} == {torch.float32}


def test_fp16_scales_its_loss_and_still_returns_the_true_one():
    plain, half = Harness(llama, []), Harness(llama, [technique("mixed_precision", dtype="float16")])
    assert half.train(3) == pytest.approx(plain.train(3), rel=2e-2)


def test_mixed_precision_says_why_it_cannot_be():
    cell = Harness(llama, []).cell.model_copy(update={"dtype": "bfloat16"})
    assert "float32" in technique("mixed_precision").unsupported(cell)
