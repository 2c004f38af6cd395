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
from torch._dynamo.utils import counters
from torch.nn.attention import flex_attention as torch_flex

from .test_attention import NoLargeTensor, heads_of, padded

TILE = 128
FORMS = {
    "window": Window(200),
    "longformer": Window(200, first=3),
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
    index = [torch.arange(size).view([-1 if at == axis else 1 for at in range(4)]) for axis, size in enumerate((*q.shape[:3], m))]
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
