"""Bytes, bits, order and error of the quantization family."""

import pytest
import torch
from torch import nn

from effbench.plan.plan import plan
from effbench.plan.suite import Suite
from effbench.plugin import InputError
from effbench.worker import checkpoint
from tests.techniques.conftest import CATALOG, Harness, bert, gpt2, llama, logits_of

IDS = torch.randint(1, 256, (2, 12), generator=torch.Generator().manual_seed(5))


def technique(name, **options):
    return CATALOG.technique(name, options)


def stored(harness, inference):
    return checkpoint.stored(inference.model, harness.techniques, harness.context)


def linear_weights(model):
    return sum(m.weight.numel() for n, m in model.named_modules() if type(m) is nn.Linear and "lm_head" not in n)


def bits_of_linear(harness):
    tensors = stored(harness, harness.infer())
    return 8 * sum(t.nbytes for n, t in tensors.items() if "_proj" in n) / linear_weights(llama())


@pytest.mark.parametrize(
    ("name", "options", "low", "high"),
    [
        ("bf16", {}, 16, 16),
        ("fp16", {}, 16, 16),
        ("int8_weight_only", {}, 8, 10),
        ("int4", {"group_size": 32}, 6, 6),
        ("int4", {"group_size": "row"}, 5, 6),
        ("ternary", {}, 2, 2.1),
        ("binary", {}, 1, 1.1),
    ],
)
def test_weights_are_stored_in_the_bits_that_the_name_says(name, options, low, high):
    assert low <= bits_of_linear(Harness(llama, [technique(name, **options)])) <= high  # scales included


@pytest.mark.parametrize("name", ["bf16", "int8_weight_only", "int4", "ternary", "binary", "nf4"])
def test_memory_holds_what_is_stored_and_nothing_beside_it(name):
    from effbench_plugins.meters.tensors import model_bytes

    harness = Harness(llama, [technique(name)])
    inference = harness.infer()
    written = sum(tensor.nbytes for tensor in stored(harness, inference).values())
    assert written <= model_bytes(inference.model) <= 1.02 * written + 100  # rotary frequencies are not stored


def test_errors_grow_as_bits_fall():
    def error(name, **options):
        reference = logits_of(Harness(llama, []).infer(), IDS).log_softmax(-1)
        ours = logits_of(Harness(llama, [technique(name, **options)]).infer(), IDS).log_softmax(-1)
        return float(nn.functional.kl_div(ours, reference, log_target=True, reduction="batchmean"))

    names = ["int8_weight_only", "nf4", "ternary", "binary"]
    errors = [error(name) for name in names]
    assert errors == sorted(errors)
    assert errors[0] > 0


def test_groups_make_four_bits_better_where_weights_have_outliers():
    from effbench_plugins.quantization.layers import PackedLinear

    torch.manual_seed(0)
    layer = nn.Linear(128, 32)
    with torch.no_grad():
        layer.weight[:, 0] *= 30
    errors = [
        (PackedLinear(layer, technique("int4", group_size=size)._rule, 4).weight() - layer.weight).abs().mean()
        for size in (32, "row")
    ]
    assert errors[0] < 0.6 * errors[1]


@pytest.mark.parametrize(("bits", "inputs"), [(1, 13), (2, 7), (4, 5), (4, 8)])
def test_packing_loses_nothing_at_any_width(bits, inputs):
    from effbench_plugins.quantization.layers import Codes, PackedLinear

    values = torch.randint(0, 2**bits, (3, inputs))
    layer = PackedLinear(nn.Linear(inputs, 3), lambda weight: Codes(values, torch.ones(1, 1), 0.0), bits)
    assert torch.equal(layer.weight(), values.float())
    assert layer.packed.nbytes == 3 * -(-inputs * bits // 8)


def test_int4_packs_what_the_kernel_does_not_take():
    from effbench_plugins.quantization.layers import PackedLinear

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 24), nn.Linear(24, 32), nn.Linear(32, 32))
    technique("int4").convert(model, Harness(llama, []).context)
    assert [isinstance(layer, PackedLinear) for layer in model] == [True, True, False]


@pytest.mark.parametrize(("name", "options"), [("nf4", {}), ("int8_weight_only", {"at": "apply"})])
@pytest.mark.parametrize("merged", [True, False])
def test_lora_trains_beside_frozen_integers(name, options, merged):
    stack = [technique(name, **options), technique("lora", rank=4, merged=merged)]
    harness = Harness(llama, stack)
    assert all("lora" in n for n, p in harness.model.named_parameters() if p.requires_grad)
    harness.train(3)
    inference = harness.infer()
    trained = logits_of(inference, IDS)
    unmerged = Harness(llama, [stack[0], technique("lora", rank=4, merged=False)])
    unmerged.train(3)
    reference = logits_of(unmerged.infer(), IDS)
    assert (trained - reference).abs().mean() / reference.abs().mean() < (0.15 if merged else 1e-6)
    integers = {torch.int8, torch.uint8}
    assert sum(t.dtype in integers for t in stored(harness, inference).values() if t.dim() == 2) >= 14


@pytest.mark.parametrize("inputs", [32, 64, 96])
@pytest.mark.parametrize("block_size", [32, 64, 128])
def test_nf4_is_near_whatever_the_block_and_the_inputs(inputs, block_size):
    """bitsandbytes' kernels for AVX-512 take the scales of other rows where blocks do not divide them."""
    torch.manual_seed(0)
    layer, x = nn.Linear(inputs, 32), torch.randn(64, inputs)
    expected = layer(x)
    model = technique("nf4", block_size=block_size).convert(nn.Sequential(layer), Harness(llama, []).context)
    assert (model(x) - expected).pow(2).mean().sqrt() < 0.15 * expected.std()


def test_nf4_leaves_what_has_no_whole_blocks():
    from bitsandbytes.nn import Linear4bit

    context = Harness(llama, []).context
    model = technique("nf4").convert(nn.Sequential(nn.Linear(64, 40), nn.Linear(40, 32)), context)
    assert [type(layer) is nn.Linear for layer in model] == [False, True]
    assert isinstance(model[0], Linear4bit)
    with pytest.raises(InputError, match="no linear layer whose inputs are a multiple of 32"):
        technique("nf4").convert(nn.Sequential(nn.Linear(40, 32)), context)


def test_nf4_trains_as_before_when_it_was_evaluated_in_between():
    """On CPUs with AVX512-BF16 bitsandbytes changes layers when they are first evaluated, for a kernel without gradients."""

    def wide():
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
        return LlamaForCausalLM(LlamaConfig(vocab_size=256, num_hidden_layers=2, **sizes))

    stack = [technique("nf4"), technique("lora", rank=4)]
    evaluated, plain = Harness(wide, stack), Harness(wide, stack)
    with torch.inference_mode():
        evaluated.model(input_ids=IDS)
    assert evaluated.train(3) == plain.train(3)


def test_what_ships_beside_the_base_of_qlora_is_the_adapter_alone():
    harness = Harness(llama, [technique("nf4"), technique("lora", rank=4)])
    checkpoints = checkpoint.Checkpoints(harness.techniques)
    checkpoints.remember_base(harness.model)
    harness.train(3)
    trainable = sum(4 * p.numel() for p in harness.model.parameters() if p.requires_grad)
    assert trainable < checkpoints.delta_bytes(harness.model, harness.context) < trainable + 6000  # names in the header


def test_qlora_is_read_again_to_the_same_logits(tmp_path):
    stack = [technique("nf4"), technique("lora", rank=4, merged=False)]
    harness = Harness(llama, stack)
    harness.train(3)
    inference = harness.infer()
    checkpoint.save(stored(harness, inference), tmp_path / "x.safetensors")
    fresh = Harness(llama, stack)
    again = fresh.infer()
    assert not torch.equal(logits_of(again, IDS), logits_of(inference, IDS))
    checkpoint.reload(tmp_path / "x.safetensors", again.model, stack, fresh.context)
    assert torch.equal(logits_of(again, IDS), logits_of(inference, IDS))


@pytest.mark.parametrize("name", ["ternary", "binary"])
def test_quantization_aware_training_sees_what_is_packed(name):
    harness = Harness(llama, [technique(name, at="train")])
    losses = harness.train(8)
    assert losses[-1] < losses[0]
    with torch.no_grad():
        seen = harness.model(input_ids=IDS).logits
    torch.testing.assert_close(logits_of(harness.infer(), IDS), seen, atol=1e-5, rtol=1e-5)


def test_ternary_weights_have_three_values():
    model = Harness(llama, [technique("ternary")]).infer().model
    weight = model.model.layers[0].self_attn.q_proj.weight()
    assert len(weight.unique()) == 3


@pytest.mark.parametrize(("bits", "tolerance"), [(8, 0.01), (4, 0.2)])
@pytest.mark.parametrize("base", [llama, gpt2])
def test_the_cache_holds_few_bits_and_attention_reads_them(base, bits, tolerance):
    from effbench_plugins.meters.tensors import stored_bytes

    inference = Harness(base, [technique("kv_quant", bits=bits)]).infer()
    reference = Harness(base, []).infer()
    mask = torch.ones_like(IDS)
    with torch.no_grad():
        _, cache = inference.prefill(inference, IDS, mask)
        _, plain = reference.prefill(reference, IDS, mask)
    heads = 2 if base is llama else 4
    tokens = 2 * 2 * heads * IDS.numel()  # keys and values of two layers; heads of 8 channels are one group each
    assert stored_bytes(cache) == tokens * (bits + 8)
    assert stored_bytes(plain) == tokens * 32
    ours, theirs = logits_of(inference, IDS), logits_of(reference, IDS)
    assert 0 < (ours - theirs).abs().mean() / theirs.abs().mean() < tolerance


def test_a_cached_token_is_never_rounded_again():
    inference = Harness(llama, [technique("kv_quant", bits=4)]).infer()
    with torch.no_grad():
        logits, cache = inference.prefill(inference, IDS, torch.ones_like(IDS))
        before = cache.layers[0]._key_tokens.parts[0].clone()
        _, cache = inference.decode(inference, logits.argmax(-1, keepdim=True), cache)
    after = cache.layers[0]._key_tokens.parts[0]
    assert after.shape[-2] == before.shape[-2] + 1
    assert torch.equal(after[..., :-1, :], before)


@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_a_cast_after_training_trains_in_float32(name):
    harness = Harness(llama, [technique(name, at="infer")])
    assert harness.train(3) == Harness(llama, []).train(3)
    assert {p.dtype for p in harness.infer().model.parameters()} == {getattr(torch, technique(name).dtype)}


@pytest.mark.parametrize(
    ("stack", "reason"),
    [
        (["int8_dynamic", "lora"], "int8_dynamic converts the weights before lora is merged: list it behind lora"),
        (["int4", "lora"], "int4 converts the weights before lora is merged"),
        ([{"technique": "int8_dynamic", "at": "apply"}, "lora"], "no gradient passes the activations that int8_dynamic rounds"),
        (["lora", "nf4"], "nf4 would freeze what lora trains"),
        (["int4", "int8_weight_only"], "int4 and int8_weight_only both set linear weights"),
        (["int4", {"technique": "bf16", "at": "infer"}], "int4 converts the weights before bf16 casts them"),
        (["mixed_precision", "bf16"], "autocast needs float32 weights"),
        (["bf16", "fp16"], "both set float type"),
        (["fp8"], "float8 products need a CUDA device"),
    ],
)
def test_impossible_stacks_are_refused_when_planned(stack, reason):
    [skip] = planned(stack).skips
    assert reason in skip.reason


@pytest.mark.parametrize(
    "stack",
    [
        ["nf4", "lora"],
        ["lora", "int8_dynamic"],
        [{"technique": "int4"}, {"technique": "lora", "merged": False}],
        [{"technique": "int8_weight_only", "at": "apply"}, "lora"],
        ["lora", {"technique": "nf4", "at": "infer"}],
        ["bf16", "int4", "kv_quant"],
    ],
)
def test_the_possible_orders_are_planned(stack):
    assert not planned(stack).skips


def planned(stack):
    content = {"name": "s", "baseline": "full", "models": ["tiny-llama"], "workloads": ["docs"], "device": "cpu"}
    return plan(Suite.model_validate(content | {"stacks": {"full": [], "x": stack}}), CATALOG)


def test_phases_that_cannot_train_are_skipped_with_the_reason():
    cell = Harness(llama, []).cell
    assert "list an adapter behind it" in technique("nf4").unsupported_phase(cell, "train")
    behind = cell.model_copy(update={"techniques": (("nf4", {}), ("lora", {}))})
    assert technique("nf4").unsupported_phase(behind, "train") is None
    assert "AdamW" in technique("fp16").unsupported_phase(cell, "train")
    not_causal = Harness(bert, []).cell
    assert "no KV cache" in technique("kv_quant").unsupported(not_causal)


def test_converting_twice_is_refused():
    harness = Harness(llama, [technique("ternary"), technique("binary")])
    with pytest.raises(InputError, match="binary: no float linear layer"):
        harness.infer()


@pytest.fixture(scope="module")
def llama_2_7b():
    """Llama-2-7B's shapes, without memory."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        config = LlamaConfig(vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32)
        return LlamaForCausalLM(config).to(torch.bfloat16)


LINEAR_7B = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
OUTPUTS_7B = 32 * (4 * 4096 + 2 * 11008 + 4096)
REST_7B = 2 * 32000 * 4096 + (2 * 32 + 1) * 4096


def test_int8_bytes_of_llama_2_7b(llama_2_7b):
    import copy

    harness = Harness(llama, [])
    model = technique("int8_weight_only").convert(copy.deepcopy(llama_2_7b), harness.context)
    total = sum(t.nbytes for t in checkpoint.stored(model, [], harness.context).values())
    scales = OUTPUTS_7B * (4 + 1)  # float32 scale and int8 zero point of each output
    assert total == LINEAR_7B + scales + 2 * REST_7B
    assert total == pytest.approx(7.0e9, rel=0.01)


@pytest.mark.parametrize(("name", "bits"), [("ternary", 2), ("binary", 1)])
def test_bitnet_bytes_of_llama_2_7b(llama_2_7b, name, bits):
    import copy

    harness = Harness(llama, [])
    model = technique(name).convert(copy.deepcopy(llama_2_7b), harness.context)
    total = sum(t.nbytes for t in checkpoint.stored(model, [], harness.context).values())
    assert total == LINEAR_7B * bits // 8 + 7 * 32 * 2 + 2 * REST_7B


def nf4_bytes(outputs, inputs, block=64):
    """Half a byte each; a byte for a block's scale; 4 bytes for that of 256 scales and for their mean; two code tables."""
    blocks = outputs * inputs // block
    return outputs * inputs // 2 + blocks + 4 * -(-blocks // 256) + 4 * (16 + 256)


def test_nf4_bytes_by_formula_here_and_for_llama_2_7b(llama_2_7b):
    harness = Harness(llama, [technique("nf4")])
    tensors = stored(harness, harness.infer())
    layer = "model.layers.0.mlp.gate_proj.weight"
    parts = {name.removeprefix(layer): t for name, t in tensors.items() if name.startswith(layer)}
    described = parts.pop(".quant_state.bitsandbytes__nf4")  # JSON: shape, type, block sizes, the scales' mean
    assert described.nbytes < 200
    assert sum(t.nbytes for t in parts.values()) == nf4_bytes(64, 32, block=32)

    layers = [m for n, m in llama_2_7b.named_modules() if isinstance(m, nn.Linear) and n != "lm_head"]
    total = sum(nf4_bytes(m.out_features, m.in_features) for m in layers)
    assert 8 * total / LINEAR_7B == pytest.approx(4.127, abs=0.001)  # the paper's 0.127 bits for scales, section 3
    assert total + 2 * REST_7B == pytest.approx(3.87e9, rel=0.01)
