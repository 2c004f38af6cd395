"""The PEFT family: published parameter counts, identities that must hold exactly, and stacks."""

import re
from dataclasses import replace
from itertools import permutations

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from effbench.plugin import InputError
from effbench.worker import defaults
from tests.records import FACTS, make_cell
from tests.techniques.conftest import BASES, CATALOG, Harness, bert, gpt2, llama, logits_of, t5

IDS = torch.randint(1, 256, (2, 12), generator=torch.Generator().manual_seed(5))
ONE_STACK = [llama, gpt2, bert]
VIRTUAL = ("prompt_tuning", "p_tuning", "prefix_tuning")


def technique(name, **options):
    return CATALOG.technique(name, options)


def trainable(model):
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def names_of_trained(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


def after_training(base, *stack, steps=3):
    harness = Harness(base, list(stack))
    harness.train(steps)
    return harness


def applied(model, one, *, causal=True):
    """The technique on a model that is too large, or too odd, to be written to a folder and loaded."""
    context = Harness(llama, []).context
    facts = context.cell.facts.model_copy(update={"causal": causal})
    return one.apply(model, replace(context, cell=context.cell.model_copy(update={"facts": facts})))


def plain_logits(base, model=None):
    return logits_of(defaults.inference(model or base()), IDS)


# Published counts, at full size and without weights


def on_meta(kind, config):
    def base():
        with torch.device("meta"):
            return kind(config)

    return base


GPT3 = on_meta(
    OPTForCausalLM,
    OPTConfig(num_hidden_layers=96, hidden_size=12288, ffn_dim=49152, num_attention_heads=96, word_embed_proj_dim=12288),
)
DEBERTA_XXL = on_meta(
    DebertaV2ForMaskedLM,
    DebertaV2Config(num_hidden_layers=48, hidden_size=1536, intermediate_size=6144, num_attention_heads=24, vocab_size=128100),
)
ROBERTA_BASE = on_meta(RobertaForMaskedLM, RobertaConfig(vocab_size=50265))
BERT_BASE = on_meta(BertForMaskedLM, BertConfig())
GPT2_MEDIUM = on_meta(GPT2LMHeadModel, GPT2Config(n_embd=1024, n_layer=24, n_head=16))
LLAMA_7B = on_meta(LlamaForCausalLM, LlamaConfig(vocab_size=32000))
LLAMA3_8B = on_meta(LlamaForCausalLM, LlamaConfig(vocab_size=128256, intermediate_size=14336, num_key_value_heads=8))


@pytest.mark.parametrize(
    ("base", "rank", "modules", "expected", "published"),
    [
        (GPT3, 1, ("q_proj", "v_proj"), 4_718_592, 4.7e6),
        (GPT3, 8, ("q_proj", "v_proj"), 37_748_736, 37.7e6),
        (DEBERTA_XXL, 16, ("query_proj", "value_proj"), 4_718_592, 4.7e6),
        (ROBERTA_BASE, 8, ("query", "value"), 294_912, 0.3e6),
    ],
    ids=["gpt3-r1", "gpt3-r8", "deberta-xxl-r16", "roberta-base-r8"],
)
def test_lora_counts_are_those_published(base, rank, modules, expected, published):
    lora = technique("lora", rank=rank, target_modules=modules)
    model = applied(base(), lora, causal=base is GPT3)
    assert trainable(model) == expected
    assert expected == pytest.approx(published, rel=0.02)


@pytest.mark.parametrize(
    ("base", "use", "expected"),
    [
        (BERT_BASE, ("adapters", {"bottleneck": 64}), 12 * 2 * (2 * 768 * 64 + 64 + 768)),
        (BERT_BASE, ("adapters", {"bottleneck": 64, "placement": "pfeiffer"}), 12 * (2 * 768 * 64 + 64 + 768)),
        (DEBERTA_XXL, ("adapters", {"bottleneck": 32}), 48 * 2 * (2 * 1536 * 32 + 32 + 1536)),
        (LLAMA_7B, ("adapters", {"bottleneck": 8, "layers": (-2, -1)}), 2 * 2 * (2 * 4096 * 8 + 8 + 4096)),
        (LLAMA_7B, ("prompt_tuning", {"tokens": 20}), 20 * 4096),
        (GPT2_MEDIUM, ("prefix_tuning", {"tokens": 10}), 10 * 24 * 2 * 1024),
        (LLAMA3_8B, ("prefix_tuning", {"tokens": 10}), 10 * 32 * 2 * 1024),  # 8 heads of 128: the keys are shared
        (
            LLAMA_7B,
            ("p_tuning", {"tokens": 20, "encoder_hidden": 128}),
            20 * 4096 + 4097 * 128 - 128 + 128 + 129 * 128 + 129 * 4096,
        ),
        (LLAMA_7B, ("ia3", {}), 32 * (4096 + 4096 + 11008)),
        (LLAMA_7B, ("low_rank", {"rank": 64}), 32 * 64 * (4 * (4096 + 4096) + 3 * (4096 + 11008))),
        (BERT_BASE, ("bitfit", {}), 12 * (4 * 768 + 3072 + 768 + 2 * 768) + 768 + 2 * 768 + 30522),
        (LLAMA_7B, ("bitfit", {}), 32 * (5 * 4096 + 2 * 11008)),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_counts_follow_their_formulas_at_full_size(base, use, expected):
    name, options = use
    assert trainable(applied(base(), technique(name, **options), causal=base is not BERT_BASE)) == expected


# LoRA in full


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
@pytest.mark.parametrize("options", [{}, {"rslora": True}, {"pissa": True}, {"adalora": True}], ids=str)
def test_merged_lora_equals_unmerged_and_costs_what_the_base_costs(base, options):
    stack = [technique("lora", rank=4, merged=merged, **options) for merged in (True, False)]
    merged, unmerged = [after_training(base, lora, steps=6) for lora in stack]
    one, other = merged.infer().model, unmerged.infer().model
    torch.testing.assert_close(plain_logits(base, one), plain_logits(base, other), atol=1e-4, rtol=1e-4)
    assert [type(m) for m in one.modules()] == [type(m) for m in base().modules()]
    assert sum(p.numel() for p in other.parameters()) > sum(p.numel() for p in one.parameters())


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
def test_pissa_starts_as_the_base_with_its_largest_part_trainable(base):
    harness = Harness(base, [technique("lora", rank=4, pissa=True, merged=False)])
    torch.testing.assert_close(logits_of(harness.infer(), IDS), plain_logits(base), atol=1e-4, rtol=1e-4)
    plain = Harness(base, [technique("lora", rank=4)])
    assert trainable(harness.model) == trainable(plain.model)
    name, layer = next((n, m) for n, m in harness.model.named_modules() if hasattr(m, "lora_A"))
    before = plain.model.get_submodule(name).base_layer.weight
    assert torch.linalg.matrix_norm(layer.base_layer.weight, 2) < torch.linalg.matrix_norm(before, 2)


def test_adalora_ends_with_the_rank_it_was_asked_for_on_average():
    harness = Harness(llama, [technique("lora", rank=4, adalora=True)], steps=12)
    values = [p for name, p in harness.model.named_parameters() if "lora_E" in name]
    assert sum(v.numel() for v in values) == 6 * len(values)  # it starts with half as much again
    losses = harness.train(12)
    assert all(torch.isfinite(torch.tensor(losses)))
    left = [int((v != 0).sum()) for v in values]
    assert sum(left) == 4 * len(values)
    assert len(set(left)) > 1  # not every matrix matters as much


def test_adalora_trains_under_its_penalty_but_is_judged_without():
    model = Harness(llama, [technique("lora", rank=4, adalora=True)]).model
    untouched = llama()(input_ids=IDS, labels=IDS).loss
    assert model(input_ids=IDS, labels=IDS).loss > untouched + 0.1
    assert torch.equal(model(input_ids=IDS).logits, llama()(input_ids=IDS).logits)


def test_adalora_says_what_it_cannot_be():
    with pytest.raises((InputError, ValidationError), match="adalora has its own"):
        technique("lora", adalora=True, dora=True)
    cell = make_cell(steps=1)
    assert "2 training steps" in technique("lora", adalora=True).unsupported_phase(cell, "train")
    assert technique("lora").unsupported_phase(cell, "train") is None


# Adapters


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        (llama, {"self_attn.o_proj", "mlp.down_proj"}),
        (gpt2, {"attn.c_proj", "mlp.c_proj"}),
        (bert, {"attention.output.dense", "output.dense"}),
        (t5, {"0.SelfAttention.o", "1.EncDecAttention.o", "1.DenseReluDense.wo", "2.DenseReluDense.wo"}),
    ],
)
def test_adapters_go_behind_each_sublayers_output(base, expected):
    model = Harness(base, [technique("adapters")]).model
    places = [name.removesuffix(".adapter") for name, _ in model.named_modules() if name.endswith(".adapter")]
    number = re.compile(r"^.*?\.(?:layers|layer|h|block)\.\d+\.(?:layer\.)?")  # up to the sublayer
    assert {number.sub("", place) for place in places} == expected
    assert len(places) == (2 * 2 + 2 * 3 if base is t5 else 2 * 2)


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
def test_untrained_adapters_change_nothing(base):
    model, reference = Harness(base, [technique("adapters")]).model, base()
    inputs = {"input_ids": IDS, "labels": IDS}
    torch.testing.assert_close(model(**inputs).logits, reference(**inputs).logits, atol=1e-5, rtol=1e-5)


def test_adapters_sit_before_the_residual_connection():
    harness = after_training(llama, technique("adapters", layers=(0,), placement="pfeiffer"))
    layer, x = harness.model.model.layers[0].mlp, torch.randn(1, 3, 32)
    projected = layer.down_proj.base_layer(layer.act_fn(layer.gate_proj(x)) * layer.up_proj(x))
    adapter = layer.down_proj.adapter
    expected = projected + adapter.up(nn.functional.gelu(adapter.down(projected)))
    assert torch.equal(layer(x), expected)
    assert not torch.equal(layer(x), projected)


def test_adapters_in_a_subset_of_layers_and_none_that_is_not_there():
    trained = names_of_trained(Harness(llama, [technique("adapters", layers=(-1,))]).model)
    assert trained
    assert all(".layers.1." in name for name in trained)
    with pytest.raises(InputError, match="2 layers; there is no layer 7"):
        Harness(llama, [technique("adapters", layers=(7,))])


def test_adapters_need_layers_they_know():
    with pytest.raises(InputError, match="no list of transformer layers in Linear"):
        applied(nn.Linear(3, 3), technique("adapters"))


# Virtual tokens


def embeddings_in_front(model, virtual, ids):
    return torch.cat([virtual.expand(len(ids), -1, -1), model.get_input_embeddings()(ids)], dim=1)


@pytest.mark.parametrize("name", VIRTUAL[:2])
@pytest.mark.parametrize("base", ONE_STACK)
def test_virtual_embeddings_are_dropped_from_logits_and_loss(name, base):
    model = after_training(base, technique(name, tokens=3)).model
    virtual, plain = model._values(), base()
    reference = plain(inputs_embeds=embeddings_in_front(plain, virtual, IDS)).logits[:, 3:]
    torch.testing.assert_close(model(input_ids=IDS).logits, reference)
    loss = plain.loss_function(logits=reference.contiguous(), labels=IDS, vocab_size=256)
    torch.testing.assert_close(model(input_ids=IDS, labels=IDS).loss, loss)


@pytest.mark.parametrize("base", [llama, gpt2])
def test_a_prefix_starts_as_if_text_came_before(base):
    model = Harness(base, [technique("prefix_tuning", tokens=5)]).model
    torch.manual_seed(1)  # as the harness does before `apply`: prefix tuning draws, after the encoder's own weights
    nn.Embedding(5, model.encoder.embedding.weight.shape[1])
    text = torch.randint(256, (1, 5)).expand(2, -1)
    expected = base()(input_ids=torch.cat([text, IDS], dim=1)).logits[:, 5:]
    torch.testing.assert_close(model(input_ids=IDS).logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("base", ONE_STACK)
@pytest.mark.parametrize("name", VIRTUAL)
def test_padding_changes_nothing_for_what_is_not_padded(name, base):
    model = after_training(base, technique(name, tokens=3)).model
    padded, mask = IDS.clone(), torch.ones_like(IDS)
    padded[:, 9:], mask[:, 9:] = 0, 0
    short = model(input_ids=IDS[:, :9], attention_mask=mask[:, :9]).logits
    torch.testing.assert_close(model(input_ids=padded, attention_mask=mask).logits[:, :9], short, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "options"),
    [("p_tuning", {}), ("p_tuning", {"encoder": "lstm"}), ("prefix_tuning", {"projection": True}), ("prompt_tuning", {})],
)
def test_the_network_is_gone_at_inference_and_its_tokens_stay(name, options):
    harness = after_training(llama, technique(name, tokens=4, **options))
    before = logits_of(defaults.inference(harness.model), IDS)
    inference = harness.infer()
    torch.testing.assert_close(logits_of(inference, IDS), before)
    assert not torch.equal(before, llama()(IDS).logits)
    width = 32 if name != "prefix_tuning" else 2 * 2 * 2 * 8
    extra = set(inference.model.state_dict()) - {f"model.{n}" for n in llama().state_dict()}
    assert extra == {"folded"}
    assert inference.model.folded.shape == (4, width)


def test_prompt_tuning_starts_from_words_of_the_vocabulary_or_from_noise():
    table = llama().get_input_embeddings().weight
    for init, known in (("vocabulary", True), ("random", False)):
        rows = Harness(llama, [technique("prompt_tuning", tokens=4, init=init)]).model.encoder.embedding.weight
        assert all(bool((table == row).all(1).any()) is known for row in rows)


@pytest.mark.parametrize("name", VIRTUAL)
def test_virtual_tokens_count_in_the_context(name):
    virtual = technique(name, tokens=100)
    cell = make_cell(seq_len=64, new_tokens=8, facts=FACTS.model_copy(update={"context": 170}))
    assert virtual.unsupported(cell) is None
    assert virtual.unsupported_phase(cell, "train") is None
    assert "context of 170" in virtual.unsupported_phase(cell, "infer")
    assert "context of 163" in virtual.unsupported(make_cell(seq_len=64, facts=FACTS.model_copy(update={"context": 163})))
    assert "encoder and a decoder" in virtual.unsupported(make_cell(facts=FACTS.model_copy(update={"model_type": "t5"})))


# BitFit, IA3, low rank


def test_bitfit_trains_every_bias_and_nothing_else():
    for base in (gpt2, bert):
        trained = names_of_trained(Harness(base, [technique("bitfit")]).model)
        assert trained == {name for name, _ in base().named_parameters() if name.endswith(".bias")}
        assert any("ln_1" in name or "LayerNorm" in name for name in trained)


@pytest.mark.parametrize("base", [llama, t5])
def test_bitfit_adds_biases_where_the_model_has_none(base):
    model, reference = Harness(base, [technique("bitfit")]).model, base()
    inputs = {"input_ids": IDS, "labels": IDS}
    torch.testing.assert_close(model(**inputs).logits, reference(**inputs).logits, atol=1e-5, rtol=1e-5)
    linear = [n for n, m in reference.named_modules() if isinstance(m, nn.Linear) and n != "lm_head"]
    assert names_of_trained(model) == {f"{name}.bias" for name in linear}
    with pytest.raises(InputError, match="no bias to train: set add_missing"):
        Harness(base, [technique("bitfit", add_missing=False)])


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
def test_merged_ia3_equals_unmerged_and_costs_what_the_base_costs(base):
    merged, unmerged = [after_training(base, technique("ia3", merged=merged)) for merged in (True, False)]
    one, other = merged.infer().model, unmerged.infer().model
    torch.testing.assert_close(plain_logits(base, one), plain_logits(base, other), atol=1e-4, rtol=1e-4)
    assert not torch.equal(plain_logits(base, one), plain_logits(base))
    assert [type(m) for m in one.modules()] == [type(m) for m in base().modules()]


def test_ia3_rescales_what_it_is_told_to_and_says_when_that_is_nothing():
    named = technique("ia3", target_modules=("q_proj", "down_proj"), feedforward_modules=("down_proj",))
    assert trainable(Harness(llama, [named]).model) == 2 * (32 + 64)
    with pytest.raises(InputError, match="name target_modules"):
        Harness(llama, [technique("ia3", target_modules=("no_such",))])
    with pytest.raises((InputError, ValidationError), match="must be among target_modules"):
        technique("ia3", feedforward_modules=("down_proj",))


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
def test_low_rank_keeps_a_matrix_that_has_this_rank_and_counts_k_times_m_plus_n(base):
    from transformers.pytorch_utils import Conv1D

    def thin():
        model = base()
        for module in model.modules():
            if isinstance(module, nn.Linear | Conv1D) and module is not model.get_output_embeddings():
                left, right = module.weight.shape
                module.weight.data = torch.randn(left, 4) @ torch.randn(4, right) / 20
        return model

    model, reference = applied(thin(), technique("low_rank", rank=4)), thin()
    torch.testing.assert_close(plain_logits(base, model), plain_logits(base, reference), atol=1e-4, rtol=1e-4)
    factored = [
        m for m in reference.modules() if isinstance(m, nn.Linear | Conv1D) and m is not reference.get_output_embeddings()
    ]
    assert trainable(model) == sum(4 * sum(m.weight.shape) for m in factored)
    assert sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in reference.parameters())


def test_low_rank_leaves_alone_what_would_not_shrink():
    model = Harness(llama, [technique("low_rank", rank=16)]).model
    assert type(model.model.layers[0].self_attn.q_proj) is nn.Linear  # 16·(32 + 32) = 32·32
    assert type(model.model.layers[0].mlp.up_proj) is not nn.Linear
    with pytest.raises(InputError, match="smaller at rank 32"):
        Harness(llama, [technique("low_rank", rank=32)])


# Stacks


def converted(model):
    return sum(isinstance(m, torch.ao.nn.quantized.dynamic.Linear) for m in model.modules())


@pytest.mark.parametrize("name", ["adapters", "bitfit", "ia3", "low_rank", *VIRTUAL])
@pytest.mark.parametrize("first", [True, False])
def test_each_trains_under_mixed_precision_in_either_order(name, first):
    one = technique(name)
    stack = [one, technique("mixed_precision")] if first else [technique("mixed_precision"), one]
    mixed = Harness(llama, stack)
    assert mixed.train(4) == pytest.approx(Harness(llama, [one]).train(4), rel=3e-2)
    assert {p.dtype for p in mixed.model.parameters()} == {torch.float32}
    inference = mixed.infer()
    assert torch.isfinite(logits_of(inference, IDS)).all()
    last, cache = inference.prefill(inference, IDS, torch.ones_like(IDS))
    assert torch.isfinite(inference.decode(inference, last.argmax(-1, keepdim=True), cache)[0]).all()


@pytest.mark.parametrize("name", ["adapters", "bitfit", "ia3", "low_rank", *VIRTUAL])
@pytest.mark.parametrize("base", ONE_STACK)
def test_int8_behind_each_stays_near_it(name, base):
    plain = after_training(base, technique(name)).infer()
    stacked = after_training(base, technique(name), technique("int8_dynamic")).infer()
    assert converted(stacked.model)
    reference = logits_of(plain, IDS)
    assert (logits_of(stacked, IDS) - reference).abs().mean() / reference.abs().mean() < 0.05


@pytest.mark.parametrize("order", list(permutations(["magnitude_pruning", "lora", "int8_dynamic"])), ids="-".join)
@pytest.mark.parametrize("base", [llama, gpt2])
def test_pruning_lora_and_int8_work_in_every_order_but_int8_before_the_merge(order, base):
    harness = after_training(base, *[technique(name) for name in order])
    if order.index("int8_dynamic") < order.index("lora"):
        with pytest.raises(InputError, match="list it before"):
            harness.infer()
    else:
        inference = harness.infer()
        assert converted(inference.model)
        assert torch.isfinite(logits_of(inference, IDS)).all()


def test_two_ways_of_choosing_what_is_trained_are_refused_in_one_stack():
    peft = [name for name in CATALOG.techniques.names() if CATALOG.techniques.get(name).family == "peft"]
    assert len(peft) >= 8
    assert all("trainable parameters" in CATALOG.techniques.get(name).sets for name in peft)
