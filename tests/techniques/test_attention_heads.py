"""Fewer heads: which are removed or pooled, and what is left of the model."""

import pytest
import torch
from effbench_plugins.attention.importance import head_importance, prune_heads
from effbench_plugins.attention.projections import projections_of
from torch.nn.functional import cross_entropy
from transformers import Qwen3Config, Qwen3ForCausalLM

from effbench.plugin import InputError
from tests.techniques.conftest import CATALOG, Harness, bert, calibration, cell_of, gpt2, llama, logits_of

IDS = torch.randint(1, 256, (2, 40), generator=torch.Generator().manual_seed(7))
BASES = [llama, gpt2, bert]


def projections(model):
    return projections_of(model, "test")


def rows_of(found, kv_heads):
    """Views of the output projection's weights for the query heads of these key heads."""
    weight = found.output.weight.data
    by_input = weight if hasattr(found.output, "nf") else weight.t()
    size = found.heads // found.kv_heads * found.channels
    return [by_input[head * size : (head + 1) * size] for head in kv_heads]


@pytest.mark.parametrize("base", BASES)
def test_heads_that_do_nothing_go_first_and_nothing_changes(base):
    model = base()
    for layer, head in ((0, 1), (1, 0)):
        rows_of(projections(model)[layer], [head])[0].zero_()
    expected = model(IDS).logits
    before = sum(p.numel() for p in model.parameters())
    layers = projections(model)
    kv_heads = layers[0].kv_heads
    prune_heads(layers, head_importance(model, layers, calibration(2)), 2 / (2 * kv_heads))
    assert [layer.kv_heads for layer in projections(model)] == [kv_heads - 1] * 2
    torch.testing.assert_close(model(IDS).logits, expected, atol=1e-5, rtol=0)
    assert sum(p.numel() for p in model.parameters()) < before


@pytest.mark.parametrize("base", BASES)
def test_a_score_is_the_derivative_by_a_gate(base):
    """Of one sequence, by finite differences on the output projection's weights."""
    model = base().double()
    batch = {name: tensor[:1] for name, tensor in calibration(1)[0].items()}
    shift = 0 if base is bert else 1

    def loss():  # transformers' own is rounded to float32
        logits = model(batch["input_ids"]).logits.detach()
        return float(cross_entropy(logits[0, : 16 - shift], batch["labels"][0, shift:]))

    found = projections(model)[1]
    derivatives, step = [], 1e-2  # a norm in float32 would drown a smaller one
    for key_head in range(found.kv_heads):
        for rows in rows_of(found, [key_head])[0].split(found.channels):
            kept, losses = rows.clone(), []
            for factor in (1 + step, 1 - step):
                rows.copy_(kept * factor)
                losses.append(loss())
            rows.copy_(kept)
            derivatives.append(abs(losses[0] - losses[1]) / (2 * step))
    expected = torch.tensor(derivatives)
    expected = (expected / expected.norm()).view(found.kv_heads, -1).sum(1)
    scores = head_importance(model, projections(model), [batch])[1]
    torch.testing.assert_close(scores, expected, atol=1e-3, rtol=1e-3, check_dtype=False)


def test_the_last_head_of_a_layer_stays():
    model = gpt2()
    layers = projections(model)
    prune_heads(layers, [torch.zeros(4), torch.ones(4)], 0.9)
    assert sorted(layer.heads for layer in projections(model)) == [1, 1]
    model = gpt2()
    prune_heads(projections(model), [torch.zeros(4), torch.ones(4)], 0.5)
    assert [layer.heads for layer in projections(model)] == [1, 3]


def test_pooling_equal_heads_changes_nothing():
    for base in BASES:
        model = base()
        for found in projections(model):
            _make_key_heads_equal(found)
        expected = model(IDS).logits
        for found in projections(model):
            found.pool(1)
        assert [found.kv_heads for found in projections(model)] == [1, 1]
        torch.testing.assert_close(model(IDS).logits, expected, atol=1e-5, rtol=0)


def _make_key_heads_equal(found):
    rows = torch.arange(found.kv_heads * found.channels) % found.channels
    if len(found.inputs) == 1:
        start = found.heads * found.channels
        for part in (start, 2 * start):
            found.inputs[0].weight.data[:, part : part + len(rows)] = found.inputs[0].weight.data[:, part + rows]
        return
    for layer in found.inputs[1:]:
        layer.weight.data = layer.weight.data[rows]


def test_neighbours_are_pooled_to_their_mean():
    model = gpt2()
    found = projections(model)[0]
    keys = found.inputs[0].weight.detach()[:, 32:64].unflatten(1, (4, 8)).clone()
    found.pool(2)
    pooled = found.inputs[0].weight.detach()[:, 32:48].unflatten(1, (2, 8))
    torch.testing.assert_close(pooled[:, 1], (keys[:, 2] + keys[:, 3]) / 2)
    assert found.inputs[0].weight.shape == (32, 32 + 2 * 16)


@pytest.mark.parametrize(("base", "groups", "heads"), [(llama, 1, 1), (gpt2, 2, 2), (gpt2, 1, 1)])
def test_grouped_query_caches_fewer_heads_and_decodes_as_the_full_forward(base, groups, heads):
    inference = Harness(base, [CATALOG.technique("grouped_query", {"groups": groups})]).infer()
    full = logits_of(inference, IDS)
    with torch.no_grad():
        _, cache = inference.prefill(inference, IDS[:, :30], torch.ones_like(IDS[:, :30]))
        last, cache = inference.decode(inference, IDS[:, 30:31], cache)
    assert {layer.keys.shape[1] for layer in cache.layers} == {heads}
    torch.testing.assert_close(last, full[:, 30], atol=1e-5, rtol=0)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("name", ["head_pruning", "grouped_query"])
@pytest.mark.parametrize("form", [("sliding_window", {"window": 200}), ("bigbird", {"block": 4, "window_blocks": 99})])
def test_forms_and_lora_go_with_fewer_heads(name, form, base):
    fewer = CATALOG.technique(name, {})
    expected = logits_of(Harness(base, [fewer]).infer(), IDS)
    stack = [fewer, CATALOG.technique(*form), CATALOG.technique("lora", {"rank": 2})]
    harness = Harness(base, stack)
    torch.testing.assert_close(logits_of(harness.infer(), IDS), expected, atol=1e-4, rtol=0)
    assert torch.tensor(Harness(base, stack).train()).isfinite().all()


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize(
    "fewer", [("grouped_query", {}), ("structured_pruning", {"what": "heads", "share": 0.5, "at": "apply"})], ids=lambda u: u[0]
)
def test_a_prefix_has_as_many_heads_as_are_left(fewer, base):
    harness = Harness(base, [CATALOG.technique(*fewer), CATALOG.technique("prefix_tuning", {"tokens": 5})])
    harness.train()
    assert logits_of(harness.infer(), IDS).isfinite().all()


def test_a_prefix_behind_layers_of_different_heads_is_refused_when_planning():
    prefix, pruning = CATALOG.technique("prefix_tuning", {}), CATALOG.technique("head_pruning", {})
    assert "a number of heads of its own" in prefix.unsupported_after([pruning])
    assert prefix.unsupported_after([CATALOG.technique("grouped_query", {})]) is None


def test_config_tells_of_grouped_heads():
    model = Harness(llama, [CATALOG.technique("grouped_query", {"groups": 1})]).model
    assert model.config.num_key_value_heads == 1
    again = type(model)(model.config)
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again.eval()(IDS).logits, model(IDS).logits)


def test_heads_with_channels_of_their_own_number_are_pruned():
    """A head's channels are not always hidden / heads."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "head_dim": 16}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    model = Qwen3ForCausalLM(Qwen3Config(vocab_size=256, **sizes, **heads)).eval()
    layers = projections(model)
    prune_heads(layers, head_importance(model, layers, calibration(1)), 0.5)
    assert (layers[0].heads, layers[0].kv_heads) == (2, 1)
    assert model(IDS).logits.isfinite().all()


@pytest.mark.parametrize(("base", "groups"), [(llama, 2), (gpt2, 3), (bert, 8)])
def test_groups_that_do_not_divide_the_heads_are_refused(base, groups):
    reason = CATALOG.technique("grouped_query", {"groups": groups}).unsupported(cell_of(base))
    assert f"cannot be pooled to {groups}" in reason


def test_wrapped_projections_are_refused_in_one_line():
    stack = [CATALOG.technique("lora", {}), CATALOG.technique("head_pruning", {})]
    with pytest.raises(InputError, match="head_pruning makes plain linear layers around the heads smaller"):
        Harness(llama, stack)


def test_eager_attention_that_knows_no_groups_is_refused():
    stack = [CATALOG.technique("exact_attention", {"kernel": "eager"}), CATALOG.technique("grouped_query", {})]
    with pytest.raises(InputError, match="eager attention of gpt2 knows no grouped heads"):
        Harness(gpt2, stack)
