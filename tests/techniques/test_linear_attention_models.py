"""Performer, Linformer and Reformer in models."""

import math

import pytest
import torch
from effbench_plugins.attention.length_projection import MODULE
from effbench_plugins.meters.tensors import stored_bytes

from effbench.plugin import InputError
from tests.techniques.conftest import BASES, CATALOG, Harness, cell_of, logits_of


@pytest.fixture(autouse=True)
def same_draws():
    torch.manual_seed(0)


IDS = torch.randint(1, 256, (2, 40), generator=torch.Generator().manual_seed(5))
LEFT_PADDED = torch.arange(40) >= torch.tensor([[0], [3]])
SMALL = {
    "performer": {"features": 16},
    "reformer": {"chunk": 4, "buckets": 4, "hashes": 2},
}


def in_model(name, base, steps=2, **options):
    return Harness(BASES[base], [CATALOG.technique(name, options)], steps=steps)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("base", ["llama", "gpt2"])
def test_prompts_in_parts_with_padding_decode_as_the_full_forward(name, base):
    model = in_model(name, base, **SMALL[name]).infer().model
    with torch.no_grad():
        full = model(input_ids=IDS, attention_mask=LEFT_PADDED.long(), use_cache=False).logits
        cache, parts = None, []
        for start, end in ((0, 20), (20, 38), (38, 39), (39, 40)):
            mask = LEFT_PADDED[:, :end].long()
            output = model(input_ids=IDS[:, start:end], attention_mask=mask, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            parts.append(output.logits)
    torch.testing.assert_close(torch.cat(parts, 1)[LEFT_PADDED], full[LEFT_PADDED], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("base", ["llama", "bert"])
@pytest.mark.parametrize("name", ["performer", "reformer", "linformer"])
def test_what_stands_in_padding_changes_nothing(name, base):
    technique = CATALOG.technique(name, SMALL.get(name, {}))
    if technique.unsupported(cell_of(BASES[base])):
        pytest.skip("refused when planned")
    model = Harness(BASES[base], [technique]).infer().model
    with torch.no_grad():
        first, second = (
            model(input_ids=ids, attention_mask=LEFT_PADDED.long(), use_cache=False).logits[LEFT_PADDED]
            for ids in (IDS, IDS.where(LEFT_PADDED, 7))
        )
    torch.testing.assert_close(second, first, atol=1e-5, rtol=0)


def test_performer_decodes_in_constant_memory():
    inference = in_model("performer", "llama", features=16).infer()
    with torch.no_grad():
        logits, cache = inference.prefill(inference, IDS, torch.ones_like(IDS))
        sizes = [stored_bytes(cache)]
        for _ in range(3):
            logits, cache = inference.decode(inference, logits.argmax(-1, keepdim=True), cache)
            sizes.append(stored_bytes(cache))
    layers, batch, heads, features, width = 2, 2, 2, 16, 8
    assert sizes == [layers * batch * heads * (features * (width + 1) + 1) * 4] * 4
    assert cache.get_seq_length() == 43


@pytest.mark.parametrize("name", SMALL)
def test_beams_move_with_what_a_form_keeps(name):
    inference = in_model(name, "llama", **SMALL[name]).infer()
    swapped = torch.tensor([1, 0])
    with torch.no_grad():
        _, cache = inference.prefill(inference, IDS[:, :39], torch.ones_like(IDS[:, :39]))
        cache.reorder_cache(swapped)
        logits, _ = inference.decode(inference, IDS[swapped, 39:], cache)
    torch.testing.assert_close(logits[swapped], logits_of(inference, IDS)[:, -1], atol=1e-4, rtol=1e-4)


def buffers(harness):
    return {name: buffer.clone() for name, buffer in harness.model.named_buffers() if name.endswith("random_features")}


def test_performer_draws_anew_only_when_it_is_told_to():
    before, after = {}, {}
    for redraw in (0, 2, 3):
        harness = in_model("performer", "llama", features=16, redraw=redraw)
        before[redraw] = buffers(harness)
        harness.train(steps=2)
        after[redraw] = buffers(harness)
    assert len(before[0]) == 2  # layers
    for name, drawn in before[0].items():
        assert torch.equal(after[0][name], drawn)
        assert torch.equal(after[3][name], drawn)
        assert not torch.equal(after[2][name], drawn)
    first, second = before[0].values()
    assert not torch.equal(first, second)


def test_linformer_with_as_many_slots_as_tokens_starts_as_the_model_it_was():
    ids = torch.randint(1, 256, (2, 64))
    plain, changed = (
        logits_of(harness.infer(), ids) for harness in (Harness(BASES["bert"], []), in_model("linformer", "bert"))
    )
    torch.testing.assert_close(changed, plain, atol=1e-4, rtol=1e-4)


def test_linformer_shares_what_it_is_told_to_share():
    counts = {}
    for share in ("none", "kv"):
        harness = in_model("linformer", "bert", k=16, share=share)
        counts[share] = sum(p.numel() for n, p in harness.model.named_parameters() if MODULE in n)
    assert counts == {"none": 2 * 2 * 16 * 64, "kv": 2 * 16 * 64}  # two layers


@pytest.mark.parametrize("form", ["causal", "published"])
def test_reformer_leaks_where_it_says_so(form):
    harness = in_model("reformer", "llama", form=form, chunk=4, buckets=4)
    inference, changed = harness.infer(), IDS.clone()
    changed[:, 30:] = changed[:, 30:].flip(1)
    difference = (logits_of(inference, changed) - logits_of(inference, IDS))[:, :30].abs().max()
    leaks = harness.techniques[0].leaks(harness.cell)
    assert (difference > 1e-3) == (leaks is not None) == (form == "published")


@pytest.mark.parametrize("form", ["causal", "published"])
def test_reformer_with_keys_that_are_queries_ignores_the_key_projection(form):
    harness = in_model("reformer", "llama", form=form, shared_qk=False, chunk=4, buckets=4)
    shared = in_model("reformer", "gpt2", form=form, shared_qk=True, chunk=4, buckets=4)
    before = [logits_of(h.infer(), IDS) for h in (harness, shared)]
    with torch.no_grad():
        for layer in harness.model.model.layers:
            layer.self_attn.k_proj.weight.mul_(-1)
        for block in shared.model.transformer.h:
            block.attn.c_attn.weight[:, 32:64].mul_(-1)
    after = [logits_of(h.infer(), IDS) for h in (harness, shared)]
    assert not torch.allclose(after[0], before[0], atol=1e-3)
    assert torch.equal(after[1], before[1])


def test_reformer_with_keys_that_are_queries_decodes_as_the_full_forward():
    inference = in_model("reformer", "gpt2", shared_qk=True, chunk=4, buckets=4).infer()
    full = logits_of(inference, IDS)
    with torch.no_grad():
        logits, cache = inference.prefill(inference, IDS[:, :38], torch.ones_like(IDS[:, :38]))
        steps = [logits]
        for position in (38, 39):
            logits, cache = inference.decode(inference, IDS[:, position : position + 1], cache)
            steps.append(logits)
    torch.testing.assert_close(torch.stack(steps, 1), full[:, 37:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("name", "base"), [("performer", "llama"), ("reformer", "llama"), ("linformer", "bert")])
def test_forms_train_under_autocast(name, base):
    harness = Harness(BASES[base], [CATALOG.technique(name, {}), CATALOG.technique("mixed_precision", {})])
    assert all(math.isfinite(loss) for loss in harness.train())


@pytest.mark.parametrize(
    ("name", "options", "base", "reason"),
    [
        ("linformer", {}, "llama", "causal, would see the future"),
        ("linformer", {}, "t5", "encoder and a decoder"),
        ("reformer", {"form": "causal"}, "bert", "looks both ways"),
        ("reformer", {"shared_qk": True}, "llama", "a key head for each query head"),
    ],
)
def test_what_cannot_be_is_refused_when_planned(name, options, base, reason):
    assert reason in CATALOG.technique(name, options).unsupported(cell_of(BASES[base]))


def test_linformer_is_refused_beside_what_makes_sequences_longer():
    linformer, prompt = CATALOG.technique("linformer", {}), CATALOG.technique("prompt_tuning", {})
    assert "prompt_tuning adds to them" in linformer.unsupported_after([prompt])
    assert "prompt_tuning adds to them" in linformer.unsupported_before([prompt])
    assert linformer.unsupported_after([CATALOG.technique("lora", {})]) is None


def test_buckets_are_a_power_of_two():
    with pytest.raises(InputError, match="12 buckets"):
        CATALOG.technique("reformer", {"buckets": 12})
    assert CATALOG.technique("reformer", {}).buckets_for(8192) == 256
    assert CATALOG.technique("reformer", {}).buckets_for(50) == 2
