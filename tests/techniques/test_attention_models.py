"""Attention forms inside models: padding, decoding, grouped heads, wrappers, and what is left of the model's own attention."""

import pytest
import torch
from effbench_plugins.attention.cache import PastLayer, attention_modules
from effbench_plugins.attention.form import Form
from effbench_plugins.attention.interface import install, install_cache
from effbench_plugins.attention.window import Window
from transformers import DistilBertConfig, DistilBertForMaskedLM, MistralConfig, MistralForCausalLM

from effbench.plugin import InputError
from tests.techniques.conftest import BASES, CATALOG, Harness, bert, cell_of, gpt2, llama, logits_of, t5

SMALL = {
    "sliding_window": {"window": 6},
    "longformer": {"window": 4, "global_tokens": 2},
    "bigbird": {"block": 4, "window_blocks": 1, "random_blocks": 1},
    "topk_attention": {"block": 4, "blocks": 2},
}
WHOLE = {
    "sliding_window": {"window": 200},
    "longformer": {"window": 200},
    "bigbird": {"block": 4, "window_blocks": 99},
    "topk_attention": {"block": 4, "blocks": 99},
}
IDS = torch.randint(1, 256, (2, 40), generator=torch.Generator().manual_seed(7))
DECODERS = [llama, gpt2]


def inference_of(base, name, options):
    return Harness(base, [CATALOG.technique(name, options)]).infer()


def with_mask(inference, ids, mask):
    with torch.no_grad():
        return inference.logits(inference, ids, mask)


@pytest.mark.parametrize("base", [llama, gpt2, bert])
@pytest.mark.parametrize("name", WHOLE)
def test_a_form_that_sees_everything_leaves_the_model_as_it_was(name, base):
    expected = logits_of(Harness(base, []).infer(), IDS)
    torch.testing.assert_close(logits_of(inference_of(base, name, WHOLE[name]), IDS), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("base", [llama, gpt2, bert])
@pytest.mark.parametrize("name", SMALL)
def test_a_form_that_sees_less_changes_it(name, base):
    expected = logits_of(Harness(base, []).infer(), IDS)
    assert not torch.allclose(logits_of(inference_of(base, name, SMALL[name]), IDS), expected, atol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("base", [llama, gpt2, bert])
@pytest.mark.parametrize("name", SMALL)
def test_what_stands_under_padding_changes_nothing(name, base, side):
    mask = torch.ones_like(IDS)
    mask[0, slice(0, 13) if side == "left" else slice(27, None)] = 0
    changed = torch.where(mask.bool(), IDS, 255 - IDS)
    inference = inference_of(base, name, SMALL[name])
    before, after = (with_mask(inference, ids, mask)[mask.bool()] for ids in (IDS, changed))
    assert torch.equal(before, after)
    assert not torch.equal(with_mask(inference, IDS, torch.ones_like(IDS))[mask.bool()], before) or side == "right"


@pytest.mark.parametrize("base", [llama, gpt2, bert])
@pytest.mark.parametrize("name", SMALL)
def test_padding_on_the_right_is_as_if_the_row_were_shorter(name, base):
    if name == "bigbird" and base is bert:
        pytest.skip("its last global block is the last of the batch's, as published")
    mask = torch.ones_like(IDS)
    mask[0, 27:] = 0
    inference = inference_of(base, name, SMALL[name])
    alone = with_mask(inference, IDS[:1, :27], mask[:1, :27])
    torch.testing.assert_close(with_mask(inference, IDS, mask)[:1, :27], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 7, 9, 17, 33, 65, 127])
@pytest.mark.parametrize("name", [*SMALL, "performer", "reformer"])
def test_no_later_token_is_seen_at_any_length(name, length):
    """In float64, where rounding does not hide a small leak, and by perturbing, for a choice has no gradient."""
    model = inference_of(llama, name, SMALL.get(name, {})).model.double()
    ids = torch.randint(1, 256, (2, length), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = model(input_ids=ids, use_cache=False).logits
        for cut in {length // 2, length - 1}:
            changed = torch.cat([ids[:, :cut], 256 - ids[:, cut:]], dim=1)
            after = model(input_ids=changed, use_cache=False).logits
            torch.testing.assert_close(after[:, :cut], before[:, :cut], atol=1e-12, rtol=0)
    assert before.isfinite().all()


@pytest.mark.parametrize("parts", [[30], [1, 1, 28], [13, 17], [5, 1, 7, 9]])
@pytest.mark.parametrize("base", DECODERS)
@pytest.mark.parametrize("name", SMALL)
def test_decoding_behind_a_prompt_in_parts_equals_the_full_forward(name, base, parts):
    inference = inference_of(base, name, SMALL[name])
    expected = logits_of(inference, IDS)
    cache, at, found = None, 0, []
    with torch.no_grad():
        for part in [*parts, *[1] * (40 - sum(parts))]:
            output = inference.model(input_ids=IDS[:, at : at + part], past_key_values=cache, use_cache=True)
            cache, at = output.past_key_values, at + part
            found.append(output.logits)
            assert cache.get_seq_length() == at
    torch.testing.assert_close(torch.cat(found, 1), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("base", DECODERS)
@pytest.mark.parametrize("name", SMALL)
def test_decoding_knows_what_was_padded_in_the_prompt(name, base):
    mask = torch.ones_like(IDS)
    mask[0, :5] = 0
    inference = inference_of(base, name, SMALL[name])
    places = (mask.cumsum(1) - 1).clamp(min=0)
    cache, found = None, []
    with torch.no_grad():
        whole = inference.model(input_ids=IDS, attention_mask=mask, position_ids=places, use_cache=False).logits
        for start, stop in [(0, 9), *((at, at + 1) for at in range(9, 40))]:
            output = inference.model(
                input_ids=IDS[:, start:stop],
                attention_mask=mask[:, :stop],
                position_ids=places[:, start:stop],
                past_key_values=cache,
                use_cache=True,
            )
            cache = output.past_key_values
            found.append(output.logits)
    torch.testing.assert_close(torch.cat(found, 1)[mask.bool()], whole[mask.bool()], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("name", "kept"), [("sliding_window", 6), ("longformer", 6)])
def test_a_window_decodes_in_constant_memory(name, kept):
    inference = inference_of(llama, name, SMALL[name])
    with torch.no_grad():
        _, cache = inference.prefill(inference, IDS, torch.ones_like(IDS))
        for _ in range(9):
            _, cache = inference.decode(inference, IDS[:, :1], cache)
    assert [layer.keys.shape[2] for layer in cache.layers] == [kept, kept]
    assert cache.get_seq_length() == 49


def test_a_cache_that_the_caller_brings_is_taken_over():
    model = llama()
    with torch.no_grad():
        cache = model(input_ids=IDS[:, :30], use_cache=True).past_key_values
        expected = model(input_ids=IDS[:, 30:], past_key_values=cache, use_cache=True).logits
        cache.crop(-10)
        install(model, "test", Window(200))
        install_cache(model, Window(200))
        output = model(input_ids=IDS[:, 30:], past_key_values=cache, use_cache=True)
    assert all(isinstance(layer, PastLayer) for layer in output.past_key_values.layers)
    torch.testing.assert_close(output.logits, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("merged", [True, False])
@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("name", SMALL)
def test_stands_before_or_behind_lora(name, order, merged):
    stack = [CATALOG.technique(name, SMALL[name]), CATALOG.technique("lora", {"rank": 2, "merged": merged})]
    harness = Harness(llama, stack[:: 1 if order else -1])
    harness.train()
    inference = harness.infer()
    full = logits_of(inference, IDS)
    with torch.no_grad():
        last, cache = inference.prefill(inference, IDS[:, :30], torch.ones_like(IDS[:, :30]))
        torch.testing.assert_close(last, full[:, 29], atol=1e-4, rtol=0)
        last, _ = inference.decode(inference, IDS[:, 30:31], cache)
    torch.testing.assert_close(last, full[:, 30], atol=1e-4, rtol=0)
    torch.testing.assert_close(full[:, :30], logits_of(inference, IDS[:, :30]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", SMALL)
def test_trains_under_autocast_nearly_as_without(name):
    form = CATALOG.technique(name, SMALL[name])
    full, half = (Harness(llama, [form, *more]).train() for more in ([], [CATALOG.technique("mixed_precision", {})]))
    assert full != half
    assert full == pytest.approx(half, abs=0.02)


def test_two_models_in_one_process_keep_their_own_forms():
    wide, narrow = llama(), llama()
    install(wide, "test", Window(200))
    before = wide(IDS).logits
    install(narrow, "test", Window(2))
    assert torch.equal(wide(IDS).logits, before)
    assert not torch.allclose(narrow(IDS).logits, before, atol=1e-3)


def mistral():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 7}
    return MistralForCausalLM(MistralConfig(vocab_size=256, **sizes, **heads)).eval()


class Everything(Form):
    def __call__(self, module, heads):
        raise AssertionError("a layer with a window of its own keeps it")


@pytest.mark.parametrize(("form", "alone"), [(Everything(), 7), (Window(9), 7), (Window(5), 5)])
def test_layers_with_a_window_of_their_own_keep_it_where_it_is_narrower(form, alone):
    model, plain = mistral(), mistral()
    plain.config.sliding_window = alone
    expected = plain(IDS).logits
    install(model, "test", form)
    install_cache(model, form)
    torch.testing.assert_close(model(IDS).logits, expected, atol=1e-5, rtol=0)
    with torch.no_grad():
        cache = model(IDS[:, :20], use_cache=True).past_key_values
        for at in range(20, 40):
            step = model(IDS[:, at : at + 1], past_key_values=cache, use_cache=True)
            torch.testing.assert_close(step.logits[:, 0], expected[:, at], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", [*SMALL, "head_pruning", "grouped_query"])
@pytest.mark.parametrize(("model_type", "why"), [("t5", "decoder"), ("mpnet", "interface"), ("deberta-v2", "interface")])
def test_models_without_an_interface_or_with_two_stacks_are_refused_when_planning(name, model_type, why):
    cell = cell_of(llama)
    facts = cell.facts.model_copy(update={"model_type": model_type})
    reason = CATALOG.technique(name, {}).unsupported(cell.model_copy(update={"facts": facts}))
    assert model_type in reason
    assert why in reason


@pytest.mark.parametrize("name", SMALL)
def test_models_that_use_the_interface_are_not_refused(name):
    assert all(CATALOG.technique(name, {}).unsupported(cell_of(base)) is None for base in (llama, gpt2, bert))


def test_what_the_plan_cannot_know_is_refused_when_the_model_is_there():
    with pytest.raises(InputError, match="t5 has cross-attention"):
        install(t5(), "test", Window(4))
    model = llama()
    install(model, "test", Window(4))
    with pytest.raises(InputError, match="a mask of tokens"):
        model(IDS[:, :4], attention_mask=torch.ones(2, 1, 4, 4))
    with pytest.raises(InputError, match="softcap"):
        model(IDS, softcap=3.0)


@pytest.mark.parametrize("name", SMALL)
def test_sequences_packed_into_one_row_are_refused(name):
    model = inference_of(llama, name, SMALL[name]).model
    restarting = torch.cat([torch.arange(12), torch.arange(28)]).expand(2, -1)
    with pytest.raises(InputError, match="one sequence a row"):
        model(IDS, position_ids=restarting, use_cache=False)
    with pytest.raises(InputError, match="one sequence a row"):
        model(IDS, cu_seq_lens_q=torch.tensor([0, 12, 40]))
    assert model(IDS, position_ids=torch.arange(40)[None], use_cache=False).logits.isfinite().all()


def test_two_sided_windows_of_a_models_own_are_refused_when_planning():
    cell = cell_of(bert)
    facts = cell.facts.model_copy(update={"model_type": "modernbert"})
    cell = cell.model_copy(update={"facts": facts})
    assert all("two-sided windows" in CATALOG.technique(name, {}).unsupported(cell) for name in SMALL)
    assert CATALOG.technique("head_pruning", {}).unsupported(cell) is None


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("base", [llama, gpt2, bert])
@pytest.mark.parametrize("name", SMALL)
def test_stands_before_or_behind_a_prefix(name, base, order):
    """Which an encoder takes in a mask of its own; what is padded stays hidden."""
    stack = [CATALOG.technique(name, SMALL[name]), CATALOG.technique("prefix_tuning", {"tokens": 5})]
    harness = Harness(base, stack[::order])
    harness.train()
    inference, mask = harness.infer(), torch.ones_like(IDS)
    mask[0, 27:] = 0
    changed = torch.where(mask.bool(), IDS, 255 - IDS)
    before, after = (with_mask(inference, ids, mask)[mask.bool()] for ids in (IDS, changed))
    torch.testing.assert_close(after, before, atol=1e-6, rtol=0)
    if not harness.cell.facts.causal:
        return
    full = logits_of(inference, IDS)
    with torch.no_grad():
        _, cache = inference.prefill(inference, IDS[:, :30], torch.ones_like(IDS[:, :30]))
        last, _ = inference.decode(inference, IDS[:, 30:31], cache)
    torch.testing.assert_close(last, full[:, 30], atol=1e-4, rtol=0)


def test_layers_that_do_not_know_their_number_are_given_one():
    sizes = {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4}
    model = DistilBertForMaskedLM(DistilBertConfig(vocab_size=256, **sizes)).eval()
    install(model, "test", Window(6))
    assert [module.layer_idx for module in attention_modules(model)] == [0, 1]
    assert model(IDS).logits.isfinite().all()


FORMS = [name for name in CATALOG.techniques.names() if hasattr(CATALOG.technique(name, {}), "build")]


@pytest.mark.parametrize("name", FORMS)
def test_a_student_is_made_before_it_is_given_a_form(name):
    form, student = CATALOG.technique(name, {}), CATALOG.technique("distillation", {})
    assert f"list {name} behind it" in form.unsupported_before([student])
    assert form.unsupported_after([student]) is None


@pytest.mark.parametrize("base", BASES.values())
def test_published_topk_says_that_it_leaks_where_it_does(base):
    cell = cell_of(base)
    leaks = [CATALOG.technique("topk_attention", {"form": form}).leaks(cell) for form in (None, "causal", "published")]
    assert [bool(reason) for reason in leaks] == [False, False, cell.facts.causal]


@pytest.mark.parametrize(("kernel", "where"), [("eager", None), ("sdpa", None), ("flex", "train"), ("flash", "cell")])
def test_exact_kernels_are_refused_where_they_cannot_run(kernel, where):
    technique, cell = CATALOG.technique("exact_attention", {"kernel": kernel}), cell_of(llama)
    assert bool(technique.unsupported(cell)) is (where == "cell")
    assert bool(technique.unsupported_phase(cell, "train")) is (where == "train")
    assert technique.unsupported_phase(cell, "infer") is None


@pytest.mark.parametrize("base", BASES.values())
def test_exact_kernels_agree(base):
    models = [inference_of(base, "exact_attention", {"kernel": kernel}) for kernel in ("eager", "sdpa")]
    assert [inference.model.config._attn_implementation for inference in models] == ["eager", "sdpa"]
    torch.testing.assert_close(*[logits_of(inference, IDS) for inference in models], atol=1e-5, rtol=0)
