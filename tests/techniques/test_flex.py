"""Patterns of blocks as FlexAttention's kernels would run them, on the CPU: lists of tiles, rules, gradients, recompilation."""

import pytest
import torch
from effbench_plugins.attention import flex
from effbench_plugins.attention.band import Band
from effbench_plugins.attention.form import Heads
from effbench_plugins.attention.random_blocks import RandomBlocks
from effbench_plugins.attention.routed_blocks import RoutedBlocks
from effbench_plugins.attention.window import Window
from torch import nn
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch._dynamo.testing import CompileCounter
from torch.nn.attention import flex_attention as torch_flex

from .heads import NoLargeTensor
from .test_attention import heads_of, padded

TILE = 128
FORMS = {
    "window": Window(200),
    "longformer": Window(300, first=3),
    "longformer of many": Window(20, first=150),
    "bigbird": RandomBlocks(64, window=3, outer=1, drawn=1, seed=0),
    "bigbird of large blocks": RandomBlocks(256, window=1, outer=1, drawn=1, seed=0),
    "topk": RoutedBlocks(64, 3, first_query=True),
    "topk of large blocks": RoutedBlocks(128, 2, first_query=True),
}


class Layer(nn.Module):
    layer_idx = 0


def listed(counts, indices, columns):
    """(B, H, rows, columns): which tiles a pair of lists names."""
    there = torch.arange(indices.shape[3]) < counts[..., None]
    found = torch.zeros(*indices.shape[:3], columns + 1, dtype=torch.bool)
    return found.scatter_(3, torch.where(there, indices, columns).long(), value=True)[..., :columns]


def pairs(mask, q, k):
    """(B, H, n, m): the pairs that kernels see, from the lists that they walk and the rule that they apply."""
    n, m = mask.seq_lengths
    assert (n, m) == (q.shape[2], k.shape[2])
    assert mask.BLOCK_SIZE == (TILE, TILE)
    rows, columns = -(-n // TILE), -(-m // TILE)
    index = [
        torch.arange(size).view([-1 if at == axis else 1 for at in range(4)]) for axis, size in enumerate((*q.shape[:3], m))
    ]
    seen = torch.zeros(1, 1, n, m, dtype=torch.bool)
    for full in ("", "full_"):
        forward = [getattr(mask, f"{full}kv_{part}") for part in ("num_blocks", "indices")]
        backward = [getattr(mask, f"{full}q_{part}") for part in ("num_blocks", "indices")]
        if forward[0] is None:
            continue
        assert all(x.dtype == torch.int32 and x.is_contiguous() for x in forward)
        assert forward[0].shape[0] in {1, q.shape[0]}
        assert forward[0].shape[1] in {1, q.shape[1]}
        tiles = listed(*forward, columns)
        assert tiles.shape[2] == rows
        assert torch.equal(tiles, listed(*backward, rows).mT), "the backward pass walks other tiles"
        wide = tiles.repeat_interleave(TILE, 2).repeat_interleave(TILE, 3)[..., :n, :m]
        assert not (wide & seen).any(), "a tile is in both lists"
        seen = seen | (wide if full else wide & mask.mask_mod(*index))
    return seen


def as_kernels_do(q, k, v, mask, scaling):
    shared = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(shared, 1) for x in (k, v))
    scores = (q @ k.mT * scaling).masked_fill(~pairs(mask, q, k), -torch.inf)
    return scores.softmax(-1) @ v


def on_flex(monkeypatch, kernels=as_kernels_do):
    """Send all but decode steps there."""
    calls = []

    def called(q, k, v, mask, scaling):
        calls.append(mask)
        return kernels(q, k, v, mask, scaling)

    monkeypatch.setattr(flex, "applies", lambda heads: heads.q.shape[2] > 1 and not heads.dropout)
    monkeypatch.setattr(flex, "_compiled", lambda *, fixed: called)
    return calls


def run(form, heads):
    inputs = [x.detach().requires_grad_() for x in (heads.q, heads.k, heads.v)]
    result = form(Layer(), Heads(*inputs, heads.padding, heads.scaling, heads.dropout, heads.causal))
    if heads.padding is not None:  # what a padded query gets does not matter
        result = result * heads.padding[:, -heads.q.shape[2] :, None, None]
    weights = torch.randn(result.shape, dtype=result.dtype, generator=torch.Generator().manual_seed(1))
    return [result, *torch.autograd.grad((result * weights).sum(), inputs)]


CALLS = [(300, 300, True), (512, 512, True), (150, 470, True), (129, 600, True), (400, 400, False), (256, 256, False)]


@pytest.mark.parametrize("padding", [None, "left", "right"])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", FORMS)
def test_results_and_gradients_are_those_of_the_tensor_code(monkeypatch, name, call, padding):
    n, m, causal = call
    heads = heads_of(n, m, causal=causal, padding=padded(m, padding))
    expected = run(FORMS[name], heads)
    calls = on_flex(monkeypatch)
    for ours, theirs in zip(run(FORMS[name], heads), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0)
    assert len(calls) == 1


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("padding", [None, "right"])
@pytest.mark.parametrize("name", ["longformer", "bigbird", "topk"])
def test_pytorchs_own_uncompiled_attention_agrees_with_what_kernels_are_taken_to_do(monkeypatch, name, padding, causal):
    """It reads the rule alone; on CPUs it has a backward pass, but refuses to start one."""
    heads = heads_of(200, causal=causal, padding=padded(200, padding))
    expected = run(FORMS[name], heads)
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *_: None)

    def uncompiled(q, k, v, mask, scaling):
        return torch_flex.flex_attention(q, k, v, block_mask=mask, scale=scaling, enable_gqa=q.shape[1] != k.shape[1])

    calls = on_flex(monkeypatch, uncompiled)
    for ours, theirs in zip(run(FORMS[name], heads), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert calls


def masks_of(monkeypatch, name, heads):
    calls = on_flex(monkeypatch)
    with torch.no_grad():
        FORMS[name](Layer(), heads)
    return calls


def test_a_band_visits_the_tiles_that_it_needs_and_masks_only_those_at_its_edges(monkeypatch):
    heads = heads_of(2048, heads=2, groups=1, batch=1)
    (mask,) = masks_of(monkeypatch, "window", heads)
    assert mask.kv_num_blocks[0, 0].tolist() == [1, 2] + [3] * 14, "200 tokens back reach into two tiles before the own one"
    assert mask.full_kv_num_blocks[0, 0].tolist() == [0] * 16
    monkeypatch.setitem(FORMS, "wide", Window(1024))
    (mask,) = masks_of(monkeypatch, "wide", heads)
    assert mask.kv_num_blocks[0, 0].tolist() == [1] * 8 + [2] * 8
    assert mask.full_kv_num_blocks[0, 0].tolist() == [*range(8), *[7] * 8]


@pytest.mark.parametrize("name", ["longformer", "bigbird", "topk"])
def test_tiles_are_those_with_a_pair_that_is_seen_and_no_others(monkeypatch, name):
    heads = heads_of(1100)
    (mask,) = masks_of(monkeypatch, name, heads)
    seen = pairs(mask, heads.q, heads.k)
    counted = mask.kv_num_blocks + mask.full_kv_num_blocks
    ends = (0, -1100 % TILE, 0, -1100 % TILE)
    tiled = nn.functional.pad(seen, ends).unflatten(3, (-1, TILE)).unflatten(2, (-1, TILE))
    assert torch.equal(counted.expand(*seen.shape[:2], -1), tiled.any(5).any(3).sum(-1).to(counted.dtype))
    whole = nn.functional.pad(seen, ends, value=True).unflatten(3, (-1, TILE)).unflatten(2, (-1, TILE)).all(5).all(3).sum()
    assert mask.full_kv_num_blocks.expand(*seen.shape[:2], -1).sum() == whole > 0


@pytest.mark.parametrize("padding", [None, "left"])
@pytest.mark.parametrize("name", FORMS)
def test_no_tensor_is_made_that_has_as_many_elements_as_there_are_pairs(monkeypatch, name, padding):
    n = 4096
    heads = heads_of(n, heads=2, groups=1, dtype=torch.float32, channels=4, padding=padded(n, padding))
    flex._band_tiles.cache_clear()
    on_flex(monkeypatch, lambda q, k, v, mask, scaling: q * mask.kv_indices.numel())
    with NoLargeTensor(n * n // 64), torch.no_grad():
        FORMS[name](Layer(), heads)


@pytest.mark.parametrize("name", ["longformer", "bigbird"])
def test_a_fixed_pattern_is_made_into_tiles_once_for_all_steps_and_paddings(monkeypatch, name):
    heads = heads_of(300, padding=padded(300, "left"))
    calls = on_flex(monkeypatch)
    with torch.inference_mode():
        FORMS[name](Layer(), heads)
    other = Heads(heads.q, heads.k, heads.v, padded(300, "right"), 0.3, 0.0, True)
    with torch.no_grad():
        FORMS[name](Layer(), other)
    first, second = calls
    assert first.kv_indices is second.kv_indices
    assert first.q_indices is second.q_indices
    assert not first.kv_indices.is_inference(), "a training step keeps it for its backward pass"
    assert not torch.equal(pairs(first, heads.q, heads.k), pairs(second, heads.q, heads.k))


def test_choices_by_content_are_not_kept(monkeypatch):
    calls = on_flex(monkeypatch)
    heads = heads_of(600)
    changed = Heads(heads.q.flip(2), heads.k, heads.v, None, 0.3, 0.0, True)
    before = len(flex._patterns)
    with torch.no_grad():
        for given in (heads, changed):
            FORMS["topk"](Layer(), given)
    assert not torch.equal(pairs(calls[0], heads.q, heads.k), pairs(calls[1], heads.q, heads.k))
    assert len(flex._patterns) == before


def test_two_bands_and_lengths_have_tiles_of_their_own():
    device = torch.device("cpu")
    made = [flex._band_tiles(Band(True, left, 0), n, n, False, device) for left in (100, 300) for n in (256, 512)]
    assert len({id(mask) for mask in made}) == len(made)
    assert [int(mask.kv_num_blocks.sum() + mask.full_kv_num_blocks.sum()) for mask in made] == [3, 7, 3, 10]


def test_on_cpus_and_in_decode_steps_nothing_is_sent_there(monkeypatch):
    calls = []
    monkeypatch.setattr(flex, "_compiled", lambda *, fixed: calls.append(fixed))
    for form in FORMS.values():
        form(Layer(), heads_of(300))
        form(Layer(), heads_of(1, 300))
    assert not calls


@pytest.fixture
def traced(monkeypatch):
    """Dynamo as it is, and a counter in place of the compiler: it runs the graph (FlexAttention in it) operator by operator."""
    torch._dynamo.reset()
    counter = CompileCounter()
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: real(function, backend=counter, **options))
    monkeypatch.setattr(flex, "applies", lambda heads: heads.q.shape[2] > 1)
    flex._compiled.cache_clear()
    yield counter
    flex._compiled.cache_clear()
    torch._dynamo.reset()


def evaluate(form, sizes, padding="right"):
    with torch.inference_mode():
        for batch, n in sizes:
            mask = padded(n, padding)
            form(Layer(), heads_of(n, batch=batch, padding=None if mask is None else mask[:1].expand(batch, -1)))


@pytest.mark.parametrize("name", ["longformer", "bigbird", "topk"])
def test_steps_and_layers_of_one_shape_share_a_kernel_and_lengths_of_evaluation_a_few(traced, name):
    evaluate(FORMS[name], [(2, 300)] * 3)
    assert traced.frame_count == 1
    evaluate(FORMS[name], [(2 + more % 3, 310 + 11 * more) for more in range(8)])
    some = traced.frame_count
    assert some <= 4
    evaluate(FORMS[name], [(2 + more % 3, 450 + 7 * more) for more in range(8)])
    assert traced.frame_count == some


def test_where_dynamo_does_not_compile_it_is_an_error_and_not_a_slow_success(monkeypatch, traced):
    with torch.compiler.set_stance("force_eager"), pytest.raises(RuntimeError, match="not compiled"):
        evaluate(FORMS["window"], [(2, 300)])
    monkeypatch.setattr(flex, "_KERNELS", 1)
    with pytest.raises(FailOnRecompileLimitHit):
        evaluate(FORMS["window"], [(2, 300), (2, 310), (3, 320), (1, 330)])
