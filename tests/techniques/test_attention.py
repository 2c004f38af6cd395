"""Attention forms by themselves: which keys they see, against dense references and published implementations."""

import numpy as np
import pytest
import torch
from effbench_plugins.attention.form import Heads
from effbench_plugins.attention.random_blocks import RandomBlocks
from effbench_plugins.attention.routed_blocks import RoutedBlocks
from effbench_plugins.attention.window import Window
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BigBirdConfig, BigBirdModel, LongformerConfig
from transformers.models.big_bird.modeling_big_bird import BigBirdBlockSparseAttention
from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

from tests.techniques.heads import NoLargeTensor

BLOCK = 8
FORMS = {
    "window": Window(20),
    "longformer": Window(20, first=3),
    "bigbird": RandomBlocks(BLOCK, window=3, outer=1, drawn=2, seed=0),
    "topk": RoutedBlocks(BLOCK, 3, first_query=True),
    "topk published": RoutedBlocks(BLOCK, 3, first_query=False),
}
REDUCED = {
    "window": Window(1000),
    "longformer": Window(1, first=1000),
    "bigbird": RandomBlocks(BLOCK, window=999, outer=0, drawn=0, seed=0),
    "topk": RoutedBlocks(BLOCK, 999, first_query=True),
}


class Layer(nn.Module):
    layer_idx = 0


def heads_of(n, m=None, *, causal=True, padding=None, heads=4, groups=2, batch=2, dtype=torch.float64, channels=8):
    torch.manual_seed(0)
    q = torch.randn(batch, heads, n, channels, dtype=dtype)
    k, v = torch.randn(2, batch, groups, m or n, channels, dtype=dtype)
    return Heads(q, k, v, padding, 0.3, 0.0, causal)


def padded(m, side):
    padding = torch.ones(2, m, dtype=torch.bool)
    if side == "left":
        padding[0, : m // 3] = False
    elif side == "right":
        padding[0, m - m // 3 :] = False
    else:
        return None
    return padding


def weights_of(form, heads):
    """(B, H, n, m): what a form gives where each value is the unit vector of its key."""
    units = torch.eye(heads.k.shape[2], dtype=heads.k.dtype).expand(*heads.k.shape[:2], -1, -1)
    return form(Layer(), Heads(heads.q, heads.k, units, heads.padding, heads.scaling, 0.0, heads.causal)).transpose(1, 2)


def dense(heads, seen):
    """Softmax over the pairs that are seen."""
    k = heads.k.repeat_interleave(heads.q.shape[1] // heads.k.shape[1], 1)
    return (heads.q @ k.transpose(-1, -2) * heads.scaling).masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num()


def positions(n, m):
    return torch.arange(m - n, m)[:, None], torch.arange(m)[None]


def seen_by_window(n, m, causal, window, first):
    query, key = positions(n, m)
    if causal:
        return (key <= query) & ((key > query - window) | (key < first))
    return ((key - query).abs() <= window // 2) | (key < first) | (query < first)


def routed_by_definition(heads, count, first_query):
    """(B, KV, query blocks) sets of blocks; all queries are there, in whole blocks but the last."""
    batch, groups, m, _ = heads.k.shape
    tokens = torch.ones(batch, m, dtype=torch.bool) if heads.padding is None else heads.padding
    seen = torch.zeros(batch, heads.q.shape[1], m, m, dtype=torch.bool)
    shared = heads.q.shape[1] // groups
    spans = [range(start, min(start + BLOCK, m)) for start in range(0, m, BLOCK)]
    for row in range(batch):
        for group in range(groups):
            for own, span in enumerate(spans):
                queries = [i for i in span if tokens[row, i]][: 1 if first_query else None]
                route = sum(heads.q[row, group * shared + h, i] for h in range(shared) for i in queries)
                scores = {}
                for other, keys in enumerate(spans):
                    present = [i for i in keys if tokens[row, i]]
                    if present and queries and (other < own if heads.causal else other != own):
                        scores[other] = float(route @ heads.k[row, group, present].mean(0))
                best = sorted(scores, key=scores.get, reverse=True)[: count - 1]
                for block in [*best, own]:
                    for head in range(group * shared, (group + 1) * shared):
                        seen[row, head, span.start : span.stop, spans[block].start : spans[block].stop] = True
    return seen & torch.ones(m, m, dtype=torch.bool).tril() if heads.causal else seen


def assert_weights(form, heads, seen):
    """Of queries that are tokens."""
    if heads.padding is not None:
        seen = seen & heads.padding[:, None, None]
    weights, expected = weights_of(form, heads).transpose(1, 2), dense(heads, seen).transpose(1, 2)
    real = slice(None) if heads.padding is None else heads.padding[:, -heads.q.shape[2] :]
    torch.testing.assert_close(weights[real], expected[real], atol=1e-10, rtol=0)
    assert weights.isfinite().all()


CALLS = [(5, 5, True), (64, 64, True), (401, 401, True), (1, 300, True), (70, 300, True), (5, 5, False), (401, 401, False)]


@pytest.mark.parametrize("padding", [None, "left", "right"])
@pytest.mark.parametrize("first", [0, 3, 70])
@pytest.mark.parametrize("window", [1, 20, 128])
@pytest.mark.parametrize("call", CALLS)
def test_window_and_longformer_see_what_their_definition_says(call, window, first, padding):
    n, m, causal = call
    heads = heads_of(n, m, causal=causal, padding=padded(m, padding))
    assert_weights(Window(window, first), heads, seen_by_window(n, m, causal, window, first))


@pytest.mark.parametrize("padding", [None, "left", "right"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("first_query", [True, False])
def test_topk_chooses_what_its_definition_says(first_query, causal, padding):
    heads = heads_of(45, causal=causal, padding=padded(45, padding))
    assert_weights(RoutedBlocks(BLOCK, 3, first_query), heads, routed_by_definition(heads, 3, first_query))


@pytest.mark.parametrize("padding", [None, "left", "right"])
@pytest.mark.parametrize(("n", "m"), [(99, 99), (20, 99), (1, 99)])
def test_causal_bigbird_sees_its_window_the_first_block_and_random_ones_of_the_past(n, m, padding):
    seen = weights_of(FORMS["bigbird"], heads_of(n, m)) > 0
    assert_weights(FORMS["bigbird"], heads_of(n, m, padding=padded(m, padding)), seen)
    assert not torch.equal(seen[:, 0], seen[:, 2]) or n == 1, "each key head draws its own"
    assert torch.equal(seen[:, 0], seen[:, 1]), "query heads that share a key head share its blocks"
    for query, sees in zip(range(m - n, m), seen[0, 0], strict=True):
        own = query // BLOCK
        blocks = {int(key) // BLOCK for key in sees.nonzero()}
        fixed = {0, own, max(0, own - 1), max(0, own - 2)}
        assert fixed <= blocks
        assert len(blocks - fixed) == min(2, own + 1 - len(fixed))
        expected = [key for key in range(query + 1) if key // BLOCK in blocks]
        assert sees.nonzero().flatten().tolist() == expected


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", REDUCED)
def test_is_exact_attention_where_everything_is_seen(name, causal):
    heads = heads_of(77, causal=causal)
    everything = torch.ones(77, 77, dtype=torch.bool)
    assert_weights(REDUCED[name], heads, everything.tril() if causal else everything)


def test_two_sided_longformer_is_that_of_transformers_with_its_global_projections_set_to_the_local_ones():
    config = LongformerConfig(
        hidden_size=32, num_attention_heads=4, attention_window=[16], attention_probs_dropout_prob=0.0, num_hidden_layers=1
    )
    torch.manual_seed(0)
    theirs = LongformerSelfAttention(config, 0).eval()
    for name in ("query", "key", "value"):
        getattr(theirs, f"{name}_global").load_state_dict(getattr(theirs, name).state_dict())
    hidden = torch.randn(2, 64, 32)
    kind = torch.zeros(2, 64)
    kind[:, :3], kind[1, 50:] = 1.0, -1.0
    expected = theirs(hidden, 10000.0 * kind, is_index_masked=kind < 0, is_index_global_attn=kind > 0, is_global_attn=True)[0]
    q, k, v = (layer(hidden).unflatten(-1, (4, 8)).transpose(1, 2) for layer in (theirs.query, theirs.key, theirs.value))
    ours = Window(16, first=3)(Layer(), Heads(q, k, v, kind >= 0, 8**-0.5, 0.0, False)).flatten(2)
    torch.testing.assert_close(ours[kind >= 0], expected[kind >= 0], atol=1e-5, rtol=0)


def test_two_sided_bigbird_is_that_of_transformers_with_the_same_random_blocks(monkeypatch):
    blocks, size = 12, 4
    config = BigBirdConfig(hidden_size=32, num_attention_heads=4, block_size=size, num_random_blocks=2)
    torch.manual_seed(0)
    theirs = BigBirdBlockSparseAttention(config, seed=0).eval()
    form = RandomBlocks(size, window=3, outer=1, drawn=2, seed=0)
    hidden = torch.randn(2, blocks * size, 32)
    padding = torch.ones(2, blocks * size, dtype=torch.bool)
    padding[1, 41:] = False
    q, k, v = (layer(hidden).unflatten(-1, (4, 8)).transpose(1, 2) for layer in (theirs.query, theirs.key, theirs.value))
    ours = form(Layer(), Heads(q, k, v, padding, 8**-0.5, 0.0, False)).flatten(2)

    seen = (weights_of(form, Heads(q, k, v, None, 8**-0.5, 0.0, False)) > 0)[0, :, ::size, ::size]
    drawn = [
        np.array(
            [
                [b for b in range(blocks) if seen[head, own, b] and b not in {0, own - 1, own, own + 1, blocks - 1}]
                for own in range(1, blocks - 1)
            ]
        )
        for head in range(4)
    ]
    monkeypatch.setattr(theirs, "_bigbird_block_rand_mask_with_head", lambda **_: drawn)
    blocked, band, start, end = BigBirdModel.create_masks_for_block_sparse_attn(padding.float(), size)
    expected = theirs(hidden, band, start, end, blocked, blocked)[0]
    torch.testing.assert_close(ours[padding], expected[padding], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", FORMS)
def test_a_causal_form_sees_no_later_token_unless_it_is_known_to_leak(name):
    """By perturbing what comes later: a choice has no gradient, so gradients would not show it."""
    heads, changed = heads_of(99), heads_of(99)
    for x in (changed.q, changed.k, changed.v):
        x[:, :, 60:] = x[:, :, 60:].flip(2) * 3
    before, after = (FORMS[name](Layer(), x)[:, :60] for x in (heads, changed))
    assert torch.equal(before, after) is (name != "topk published")


@pytest.mark.parametrize("padding", [None, "left"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", FORMS)
def test_values_as_wide_as_keys_are_weighted_as_others_are(name, causal, padding):
    """PyTorch's fused kernel takes them, and not the unit vectors by which weights are read off."""
    heads = heads_of(401, causal=causal, padding=padded(401, padding))
    attended = FORMS[name](Layer(), heads).transpose(1, 2)
    expected = weights_of(FORMS[name], heads) @ heads.v.repeat_interleave(2, 1)
    torch.testing.assert_close(attended, expected, atol=1e-10, rtol=0)


class Called(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.operators = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operators.append(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", FORMS)
def test_the_backward_pass_does_not_attend_again(name):
    heads = heads_of(401)
    inputs = [x.requires_grad_() for x in (heads.q, heads.k, heads.v)]
    attended = FORMS[name](Layer(), heads)
    with Called() as called:
        torch.autograd.grad(attended.sum(), inputs)
    kernel = "aten::_scaled_dot_product_flash_attention_for_cpu"
    assert f"{kernel}_backward" in called.operators
    assert kernel not in called.operators


SMALL = {
    "window": Window(5),
    "longformer": Window(5, first=2),
    "bigbird": RandomBlocks(4, window=1, outer=1, drawn=1, seed=0),
    "topk": RoutedBlocks(4, 2, first_query=True),
    "topk published": RoutedBlocks(4, 2, first_query=False),
}


@pytest.mark.parametrize(("dropout", "groups"), [(0.0, 1), (0.3, 1), (0.3, 2)])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", SMALL)
def test_gradients_are_those_of_finite_differences(name, causal, dropout, groups):
    heads = heads_of(21, causal=causal, batch=1, groups=groups, heads=2, channels=2, padding=padded(21, "right")[:1])
    inputs = [x.requires_grad_() for x in (heads.q, heads.k, heads.v)]

    def attend(q, k, v):
        torch.manual_seed(3)
        return SMALL[name](Layer(), Heads(q, k, v, heads.padding, 0.3, dropout, causal))

    assert torch.autograd.gradcheck(attend, inputs)


@pytest.mark.parametrize("first", [0, 3])
def test_gradients_through_whole_blocks_are_those_of_finite_differences(first):
    """The band's blocks are of 64 queries; so many numbers are differentiated along one random direction."""
    heads = heads_of(210, batch=1, groups=1, heads=2, channels=2)
    inputs = [x.requires_grad_() for x in (heads.q, heads.k, heads.v)]

    def attend(q, k, v):
        return Window(70, first)(Layer(), Heads(q, k, v, None, 0.3, 0.0, True))

    assert torch.autograd.gradcheck(attend, inputs, fast_mode=True)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", FORMS)
def test_what_is_kept_for_the_backward_pass_is_not_much_more_than_exact_attention_keeps(name, causal):
    """Which is q, k, v and the output."""
    heads = heads_of(2048, causal=causal, heads=2, groups=2, batch=1, dtype=torch.float32)
    inputs = [x.requires_grad_() for x in (heads.q, heads.k, heads.v)]
    kept = {}

    def keep(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    wide = FORMS | {"window": Window(256), "longformer": Window(256, first=3)}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        result = wide[name](Layer(), heads)
    assert sum(kept.values()) < 2 * 4 * inputs[0].untyped_storage().nbytes(), f"for {result.shape}"


@pytest.mark.parametrize("padding", [None, "left"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", FORMS)
def test_no_tensor_has_as_many_elements_as_there_are_pairs(name, causal, padding):
    n = 2048
    heads = heads_of(n, causal=causal, heads=2, groups=1, dtype=torch.float32, channels=4, padding=padded(n, padding))
    inputs = [x.requires_grad_() for x in (heads.q, heads.k, heads.v)]
    with NoLargeTensor(n * n):
        torch.autograd.grad(FORMS[name](Layer(), heads).sum(), inputs)


def test_the_guard_against_large_tensors_sees_one():
    heads = heads_of(256, heads=1, groups=1, batch=1)
    with pytest.raises(AssertionError, match="made"), NoLargeTensor(256 * 256):
        dense(heads, torch.ones(256, 256, dtype=torch.bool))
