"""What is special about each of the first techniques, and about their stacks."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from effbench.plugin import InputError
from effbench.worker import checkpoint, defaults
from tests.techniques.conftest import BASES, CATALOG, Harness, gpt2, llama, logits_of

IDS = torch.randint(1, 256, (2, 12), generator=torch.Generator().manual_seed(5))


def technique(name, **options):
    return CATALOG.technique(name, options)


def linear_layers(model):
    return {n: m for n, m in model.named_modules() if type(m) is nn.Linear and "lm_head" not in n}


def sparsity(layers):
    weights = [layer.weight for layer in layers]
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


def converted(model):
    return [m for m in model.modules() if isinstance(m, torch.ao.nn.quantized.dynamic.Linear)]


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
    assert sparsity(layers) == pytest.approx(0.6, abs=0.002)
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
    base = [m for n, m in harness.infer().model.named_modules() if n.endswith("base_layer")]
    assert sparsity(base) == pytest.approx(0.5, abs=0.002)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("pruning_first", [True, False])
def test_zeros_survive_mixed_precision_in_either_order(dtype, pruning_first):
    stack = [technique("magnitude_pruning", sparsity=0.5), technique("mixed_precision", dtype=dtype)]
    harness = Harness(llama, stack if pruning_first else stack[::-1])
    harness.train(3)
    assert sparsity(linear_layers(harness.infer().model).values()) == pytest.approx(0.5, abs=0.002)


def test_merging_lora_fills_zeros_and_pruning_last_keeps_them():
    lora = technique("lora", rank=4)
    first = Harness(llama, [technique("magnitude_pruning"), lora])
    last = Harness(llama, [lora, technique("magnitude_pruning", at="infer")])
    shares = []
    for harness in (first, last):
        harness.train(3)
        shares.append(sparsity(linear_layers(harness.infer().model).values()))
    assert shares[0] < 0.01
    assert shares[1] == pytest.approx(0.5, abs=0.002)


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
def test_int8_converts_every_linear_layer_but_the_head(base):
    from transformers.pytorch_utils import Conv1D

    model = base()
    expected = sum(isinstance(m, nn.Linear | Conv1D) and m is not model.get_output_embeddings() for m in model.modules())
    inference = Harness(base, [technique("int8_dynamic")]).infer()
    assert len(converted(inference.model)) == expected > 0
    assert type(inference.model.get_output_embeddings()) is nn.Linear
    reference = logits_of(defaults.inference(model), IDS)
    assert (logits_of(inference, IDS) - reference).abs().mean() / reference.abs().mean() < 0.05


@pytest.mark.parametrize("base", [llama, gpt2])
def test_int8_beside_unmerged_lora_converts_only_the_frozen_layers(base):
    stack = [technique("lora", rank=4, merged=False), technique("int8_dynamic")]
    harness = Harness(base, stack)
    harness.train(3)
    plain = Harness(base, stack[:1])
    plain.train(3)
    reference = logits_of(plain.infer(), IDS)
    inference = harness.infer()
    assert converted(inference.model)
    assert all(m.weight.dtype == torch.float32 for n, m in inference.model.named_modules() if n.endswith("lora_A.default"))
    assert (logits_of(inference, IDS) - reference).abs().mean() / reference.abs().mean() < 0.05


@pytest.mark.parametrize(
    ("stack", "reason"),
    [
        ([("int8_dynamic", {}), ("lora", {})], "list it before"),
        ([("lora", {"dora": True, "merged": False}), ("int8_dynamic", {})], "merge it first"),
        ([("int8_dynamic", {}), ("int8_dynamic", {})], "no float linear layer"),
    ],
)
def test_stacks_that_cannot_be_converted_say_why(stack, reason):
    harness = Harness(llama, [technique(name, **options) for name, options in stack])
    with pytest.raises(InputError, match=reason):
        harness.infer()


def test_int8_file_is_under_35_percent_of_the_linear_layers_it_replaces():
    from safetensors.torch import save

    from effbench.worker.checkpoint import _tensors

    def wide():
        from transformers import LlamaConfig, LlamaForCausalLM

        sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4}
        return LlamaForCausalLM(LlamaConfig(vocab_size=256, num_key_value_heads=4, **sizes))

    names = linear_layers(wide())
    float_bytes = len(save({f"{n}.weight": m.weight.detach() for n, m in names.items()}))
    harness = Harness(wide, [technique("int8_dynamic")])
    stored = technique("int8_dynamic").store(_tensors(harness.infer().model), harness.context)
    packed = {n: t.contiguous() for n, t in stored.items() if n.rpartition(".")[0] in names}
    assert len(save(packed)) < 0.35 * float_bytes


def test_int8_stores_what_cuda_converts_to_as_plain_integers_too(tmp_path, monkeypatch):
    pytest.importorskip("torchao")
    from safetensors.torch import load_file

    def other_llama():
        model = llama()
        for parameter in model.parameters():
            parameter.data.mul_(1.5)
        return model

    harness = Harness(llama, [technique("int8_dynamic")])
    harness.context = replace(harness.context, device=torch.device("cuda"))  # torchao's layers also run on a CPU
    model = harness.infer().model
    written = checkpoint.stored(model, harness.techniques, harness.context)
    assert {t.dtype for n, t in written.items() if n.endswith(".weight.qdata")} == {torch.int8}
    assert sum(n.endswith(".weight.qdata") for n in written) == len(linear_layers(llama()))
    checkpoint.save(written, tmp_path / "x.safetensors")
    fresh = Harness(other_llama, harness.techniques)
    fresh.context = harness.context
    again = fresh.infer()
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "load_file", lambda file, device: load_file(file))  # no CUDA needed
        checkpoint.reload(tmp_path / "x.safetensors", again.model, fresh.techniques, fresh.context)
    assert torch.equal(logits_of(again, IDS), logits_of(defaults.inference(model), IDS))


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
    assert converted(inference.model)
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


def test_fp16_leaves_out_a_step_whose_gradients_overflow():
    harness = Harness(llama, [])
    step = defaults.train_step(harness.model, list(harness.model.parameters()), harness.cell)
    factors, loss = iter([1e38, 1.0]), step.loss
    step = replace(step, loss=lambda model, batch: loss(model, batch) * next(factors))
    step = technique("mixed_precision", dtype="float16").train(step, harness.context)
    batch = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "labels": IDS}
    before = [p.detach().clone() for p in harness.model.parameters()]
    step.run(batch)
    assert all(torch.equal(p, b) for p, b in zip(harness.model.parameters(), before, strict=True))
    step.run(batch)
    assert not all(torch.equal(p, b) for p, b in zip(harness.model.parameters(), before, strict=True))


def test_fp16_goes_around_what_was_there():
    calls = []

    def loop(current, batch):
        calls.append("accumulate")
        return sum(defaults._forward_backward(current, batch) for _ in range(2)) / 2

    harness = Harness(llama, [])
    step = replace(defaults.train_step(harness.model, list(harness.model.parameters()), harness.cell), forward_backward=loop)
    step = technique("mixed_precision", dtype="float16").train(step, harness.context)
    loss = step.run({"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "labels": IDS})
    assert calls == ["accumulate"]
    assert 1 < float(loss) < 10  # the true loss, not the scaled one


def test_mixed_precision_says_why_it_cannot_be():
    cell = Harness(llama, []).cell.model_copy(update={"dtype": "bfloat16"})
    assert "float32" in technique("mixed_precision").unsupported(cell)
