"""Pruning: which weights go, that they stay away, and that smaller models really are."""

import pytest
import torch
from effbench_plugins.meters.density import Density
from effbench_plugins.pruning.masks import masks_of, rows, two_of_four
from effbench_plugins.pruning.scores import gradients, size_by_input
from pydantic import ValidationError
from torch import nn
from torch.nn.utils import prune

from effbench.plugin import InputError, Observation
from effbench.plugin.layers import linear_layers
from effbench.worker import checkpoint
from tests.techniques.conftest import BASES, CATALOG, Harness, bert, calibration, cell_of, gpt2, llama, logits_of, t5

IDS = torch.randint(1, 256, (2, 12), generator=torch.Generator().manual_seed(5))
MASKING = ["magnitude_pruning", "gradient_pruning", "wanda"]


def technique(name, **options):
    return CATALOG.technique(name, options)


def zeros(model):
    return {name: float((layer.weight == 0).float().mean()) for name, layer in linear_layers(model).items()}


def test_masks_agree_with_pytorchs_own_pruning():
    scores = {"a": torch.rand(8, 12), "b": 2 * torch.rand(6, 8)}
    layers = {name: nn.Linear(score.shape[1], score.shape[0]) for name, score in scores.items()}
    importance = {(layers[name], "weight"): score for name, score in scores.items()}
    prune.global_unstructured(importance, prune.L1Unstructured, importance_scores=importance, amount=0.37)
    for name, mask in masks_of(scores, 0.37, "global").items():
        assert torch.equal(mask, layers[name].weight_mask.bool())


@pytest.mark.parametrize(("scope", "dims"), [("layer", None), ("output", 1)])
def test_weights_compete_within_their_scope(scope, dims):
    masks = masks_of({"a": torch.rand(8, 20), "b": 100 * torch.rand(4, 40)}, 0.25, scope)
    for mask in masks.values():
        kept = mask.float().mean() if dims is None else mask.float().mean(dims)
        torch.testing.assert_close(kept, torch.full_like(kept, 0.75))


def test_exactly_as_many_go_where_scores_tie():
    assert int(masks_of({"a": torch.ones(10, 10)}, 0.33, "global")["a"].sum()) == 67


@pytest.mark.parametrize("name", MASKING)
@pytest.mark.parametrize("at", ["apply", "infer"])
@pytest.mark.parametrize("base", [llama, gpt2], ids=["llama", "gpt2"])
def test_sparsity_is_reached_and_kept_through_training(name, at, base):
    harness = Harness(base, [technique(name, sparsity=0.75, at=at)])
    assert all(torch.isfinite(torch.tensor(harness.train(3))))
    shares = zeros(harness.infer().model)
    assert all(share == pytest.approx(0.75, abs=0.02) for share in shares.values()) or name == "magnitude_pruning"
    assert sum(shares.values()) / len(shares) == pytest.approx(0.75, abs=0.05)


def test_wanda_weighs_by_the_norm_of_the_input():
    model = nn.Sequential(nn.Linear(3, 2, bias=False))
    layer = model[0]
    layer.weight.data = torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])
    inputs = torch.tensor([[[3.0, 1.0, 0.1], [4.0, 0.0, 0.1], [9.0, 9.0, 9.0]]])
    model.forward = lambda x, attention_mask: layer(x)
    batch = {"x": inputs, "attention_mask": torch.tensor([[1, 1, 0]])}
    norms = torch.tensor([5.0, 1.0, 0.02**0.5])  # the last position is padding
    torch.testing.assert_close(size_by_input(model, {"0": layer}, [batch])["0"], layer.weight.abs().detach() * norms)


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
def test_gradients_are_those_of_the_loss_and_change_nothing(base):
    model = base()
    layers = linear_layers(model)
    model.requires_grad_(False)
    found = gradients(model, layers, calibration(2))
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
    model.requires_grad_(True)
    sum(model(**batch).loss for batch in calibration(2)).backward()
    for name, layer in layers.items():
        torch.testing.assert_close(found[name], rows(layer, layer.weight.grad), atol=1e-6, rtol=1e-4)


def test_the_first_order_estimate_is_what_the_loss_does():
    """Removing what weight × gradient calls least costs less than removing at random, or what it calls most."""
    model = llama()
    batches = calibration(4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        sum(model(**batch).loss for batch in batches).backward()
        optimizer.step()
        optimizer.zero_grad()

    def loss_without(direction):
        import copy

        pruned = copy.deepcopy(model)
        layers = linear_layers(pruned)
        found = gradients(pruned, layers, batches)
        scores = {name: direction * (rows(layers[name]) * g).abs() for name, g in found.items()}
        for name, mask in masks_of(scores, 0.3, "layer").items():
            rows(layers[name]).masked_fill_(~mask, 0.0)
        with torch.no_grad():
            return float(sum(pruned(**batch).loss for batch in batches))

    assert loss_without(1) < 0.7 * loss_without(-1)


def test_movement_learns_where_the_zeros_belong_and_leaves_plain_weights():
    harness = Harness(llama, [technique("gradient_pruning", criterion="movement", sparsity=0.6)], steps=12)
    before = zeros(harness.model)
    losses = harness.train(12)
    assert all(torch.isfinite(torch.tensor(losses)))
    model = harness.infer().model
    assert not any("parametrizations" in name for name, _ in model.named_parameters())
    assert max(before.values()) == 0
    assert all(share == pytest.approx(0.6, abs=0.01) for share in zeros(model).values())
    masked = {name for name, layer in linear_layers(model).items() if (layer.weight == 0).any()}
    assert masked == set(before)


def test_movement_needs_training_and_linear_weights_that_train():
    movement = technique("gradient_pruning", criterion="movement")
    assert "add the phase" in movement.unsupported(cell_of(llama, phases=("infer",)))
    assert movement.unsupported(cell_of(llama)) is None
    with pytest.raises(ValidationError, match="learnt while training"):
        movement.model_validate({"criterion": "movement", "at": "infer"})
    with pytest.raises(InputError, match="an adapter's base is frozen"):
        Harness(llama, [movement, technique("lora", rank=2)]).train()


def test_a_masked_weight_can_come_back_in_movement_pruning():
    from effbench_plugins.pruning.movement import _Masked

    weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    masked = _Masked(weight)
    masked.mask[0] = False
    out = masked(weight)
    assert out.tolist() == [0.0, 2.0]
    out.sum().backward()
    assert weight.grad.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("criterion", ["magnitude", "wanda"])
@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
def test_two_of_four_everywhere(criterion, base):
    harness = Harness(base, [technique("semi_structured", criterion=criterion)])
    harness.train(2)
    for layer in linear_layers(harness.infer().model).values():
        assert ((rows(layer).unflatten(1, (-1, 4)) == 0).sum(-1) == 2).all()


def test_two_of_four_keeps_the_highest():
    assert two_of_four(torch.tensor([[4.0, 1.0, 3.0, 2.0, 0.0, 0.0, 1.0, 1.0]])).tolist() == [
        [True, False, True, False, False, False, True, True]
    ]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_two_of_four_runs_on_its_kernels():
    from effbench_plugins.pruning.masks import pack_two_of_four

    layer = nn.Linear(128, 128, bias=False, device="cuda", dtype=torch.bfloat16)
    mask = two_of_four(layer.weight.detach().abs())
    layer.weight.data *= mask
    x = torch.randn(64, 128, device="cuda", dtype=torch.bfloat16)
    dense = layer(x)
    packed = pack_two_of_four(nn.Sequential(layer))
    assert type(packed[0].weight).__name__.startswith("SparseSemiStructured")
    torch.testing.assert_close(packed(x), dense, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
def test_channels_are_really_gone(base):
    plain = base()
    harness = Harness(base, [technique("structured_pruning", share=0.5)])
    harness.train(2)
    model = harness.infer().model
    sizes = {tuple(rows(layer).shape) for layer in linear_layers(model).values()}
    hidden = model.config.hidden_size
    inner = 64 if base is gpt2 else 32
    assert (inner, hidden) in sizes
    assert (hidden, inner) in sizes
    assert (2 * inner, hidden) not in sizes
    count = sum(p.numel() for p in model.parameters())
    removed = sum(p.numel() for p in plain.parameters()) - count
    blocks = 4 if base is t5 else 2
    matrices = 3 if base is llama else 2
    bias = inner if base in {gpt2, bert} else 0
    assert removed == blocks * (matrices * inner * hidden + bias)
    again = type(model)(model.config)  # its config says so
    assert {n: p.shape for n, p in again.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}


def test_the_channels_that_go_are_those_that_did_nothing():
    model = llama()
    dead = torch.arange(0, 64, 2)
    for layer in model.model.layers:
        layer.mlp.down_proj.weight.data[:, dead] = 0
    expected = model(IDS).logits
    from effbench_plugins.pruning.structure import narrower

    torch.testing.assert_close(narrower(model, 0.5, 8, calibration(2))(IDS).logits, expected)
    assert model.model.layers[0].mlp.down_proj.weight.shape == (32, 32)


@pytest.mark.parametrize("at", ["apply", "infer"])
@pytest.mark.parametrize("base", [llama, gpt2, bert], ids=["llama", "gpt2", "bert"])
def test_heads_are_really_gone_and_what_is_stored_fits_again(base, at, tmp_path):
    stack = [technique("structured_pruning", what="heads", share=0.5, at=at)]
    harness = Harness(base, stack)
    harness.train(2)
    inference = harness.infer()
    plain = base()
    hidden = plain.config.hidden_size
    removed = sum(p.numel() for p in plain.parameters()) - sum(p.numel() for p in inference.model.parameters())
    assert removed >= (3 if base is llama else 4) * hidden**2  # half of q, k, v, o in two layers; llama's k, v are narrow
    expected = logits_of(inference, IDS)
    checkpoint.save(checkpoint.stored(inference.model, stack, harness.context), tmp_path / "x.safetensors")
    again = Harness(base, stack)
    fresh = again.infer()
    checkpoint.reload(tmp_path / "x.safetensors", fresh.model, stack, again.context)
    torch.testing.assert_close(logits_of(fresh, IDS), expected)


def test_heads_of_two_stacks_are_refused_when_planned():
    assert "an encoder and a decoder" in technique("structured_pruning", what="heads").unsupported(cell_of(t5))
    assert technique("structured_pruning").unsupported(cell_of(t5)) is None


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
def test_layers_are_really_gone_and_the_cache_still_fits(base):
    harness = Harness(base, [technique("structured_pruning", what="layers", share=0.5)])
    harness.train(2)
    inference = harness.infer()
    assert inference.model.config.num_hidden_layers == 1
    full = logits_of(inference, IDS)
    assert torch.isfinite(full).all()
    if harness.cell.facts.causal:
        with torch.no_grad():
            _, cache = inference.prefill(inference, IDS[:, :-1], torch.ones_like(IDS[:, :-1]))
            last, cache = inference.decode(inference, IDS[:, -1:], cache)
        torch.testing.assert_close(last, full[:, -1], atol=1e-4, rtol=1e-4)
        assert len(cache) == 1


def test_the_layer_that_changes_least_goes_and_the_first_stays():
    from effbench_plugins.pruning.structure import without_layers

    model = llama(layers=4)
    for number in (0, 2):  # these pass on what they are given
        model.model.layers[number].self_attn.o_proj.weight.data.zero_()
        model.model.layers[number].mlp.down_proj.weight.data.zero_()
    expected = model(IDS).logits
    kept = [model.model.layers[number] for number in (0, 1, 3)]
    pruned = without_layers(model, 0.25, calibration(1))
    assert list(pruned.model.layers) == kept
    assert [layer.self_attn.layer_idx for layer in kept] == [0, 1, 2]
    torch.testing.assert_close(pruned(IDS).logits, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 0.05}, "removes none"),
        ({"what": "layers", "share": 0.3}, "less than one"),
        ({"what": "heads", "share": 0.3}, "less than one"),
    ],
)
def test_a_share_that_removes_nothing_is_one_clear_line(options, message):
    with pytest.raises(InputError, match=message):
        Harness(llama, [technique("structured_pruning", **options)])


@pytest.mark.parametrize("name", [*MASKING, "semi_structured", "structured_pruning"])
def test_order_is_refused_when_planned(name):
    after = technique(name, at="infer")
    assert "list it behind" in after.unsupported_after([technique("int8_dynamic")])
    assert "list it behind" in technique(name).unsupported_after([technique("nf4")])
    assert technique(name).unsupported_after([technique("int8_dynamic")]) is None  # it converts later, wherever it stands
    assert "list it before" in technique(name).unsupported_after([technique("lora")])
    assert after.unsupported_after([technique("lora")]) is None


def test_pruning_after_training_leaves_adapters_whole():
    harness = Harness(
        llama, [technique("lora", rank=4, merged=False), technique("magnitude_pruning", at="infer", sparsity=0.9)]
    )
    harness.train()
    added = [p for n, p in harness.infer().model.named_parameters() if "lora_" in n]
    assert added
    assert all(float((p == 0).float().mean()) < 0.5 for p in added)


def test_bytes_without_zeros_are_those_of_the_kept_weights():
    tensor = torch.zeros(64, 64)
    tensor[:, :16] = torch.rand(64, 16) + 1
    dense = torch.rand(10) + 1
    sparse = checkpoint.without_zeros({"a": tensor, "b": dense})
    assert sum(part.nbytes for name, part in sparse.items() if name != "b") == 64 * 16 * 4 + 64 * 64 // 8
    assert sparse["b"] is dense


def test_what_is_left_is_counted_in_the_model_that_is_used():
    def share(stack):
        harness = Harness(llama, stack)
        harness.train()
        seen = Observation(cell=harness.cell, phase="infer", model=harness.infer().model)
        return {name: value.median for name, value in Density().end(seen).items()}

    pruned = technique("magnitude_pruning", sparsity=0.5)
    assert share([pruned])["weights.density"] == pytest.approx(0.5, abs=0.01)
    assert share([pruned, technique("lora", rank=4)])["weights.density"] > 0.99  # merging has filled them
    assert share([technique("int8_dynamic")]) == {}
