"""Reformer: the mathematics of attention within buckets, on plain tensors."""

import math

import pytest
import torch
from effbench_plugins.attention import hashing, lsh, slabs
from effbench_plugins.attention.chunks import Hashes, Rule
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

from tests.techniques.heads import WIDTH, hashed, heads_of, repeated, right_padding, tensors


@pytest.fixture(autouse=True)
def same_draws():
    torch.manual_seed(0)


def strict_reference(heads, hashes, chunk, *, shared=False):
    """Softmax with a dense mask: how often each query meets each key, counted one by one."""
    q, k, (query_buckets, key_buckets) = heads.q, heads.k, hashes
    n, m = q.shape[2], k.shape[2]
    times = torch.zeros(*q.shape[:3], m, dtype=q.dtype)
    group = q.shape[1] // k.shape[1]
    for b, h, r, i in torch.cartesian_prod(*(torch.arange(size) for size in (*query_buckets.shape[:3], n))).tolist():
        position = m - n + i
        same = key_buckets[b, h // group, r, : position + 1] == query_buckets[b, h, r, i]
        met = set(same.nonzero().flatten().tolist()[-chunk:]) | {position}
        times[b, h, i, list(met)] += 1
    scores = heads.scaling * q @ repeated(k).mT + times.log()
    if shared:
        scores = scores - 1e5 * torch.ones(n, m).triu(m - n).tril(m - n)
    return scores.softmax(-1) @ repeated(heads.v)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("length", "queries"), [(32, 32), (45, 45), (45, 13), (45, 1), (5, 5)])
def test_strict_lsh_is_a_band_within_the_bucket(length, queries, shared):
    q, k, v = tensors(length, kv_heads=4 if shared else 2)
    if shared:
        q = k
    q = q[:, :, -queries:]
    buckets = hashed(q, k)
    rule = Rule(chunk=8, strict=True, causal=True, shared=shared)
    actual = lsh.attend(heads_of(q, k, v, scaling=0.5), buckets, rule)
    expected = strict_reference(heads_of(q, k, v, scaling=0.5), buckets, 8, shared=shared)
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=0)


def test_lsh_keeps_right_where_queries_and_keys_fall_into_different_buckets():
    q, k, v = tensors(40)
    query_buckets = torch.zeros(2, 4, 1, 40, dtype=torch.long)
    key_buckets = torch.ones(2, 2, 1, 40, dtype=torch.long)
    key_buckets[..., 3:20] = 0
    rule = Rule(chunk=4, strict=True, causal=True, shared=False)
    buckets = Hashes(query_buckets, key_buckets)
    actual = lsh.attend(heads_of(q, k, v, scaling=0.5), buckets, rule)
    torch.testing.assert_close(actual, strict_reference(heads_of(q, k, v, scaling=0.5), buckets, 4), atol=1e-6, rtol=0)


@pytest.mark.parametrize("strict", [False, True])
def test_one_bucket_in_one_chunk_is_exact_attention(strict):
    q, k, v = tensors(30)
    buckets = Hashes(*(torch.zeros(2, heads, 2, 30, dtype=torch.long) for heads in (4, 2)))
    rule = Rule(chunk=32, strict=strict, causal=strict, shared=False)
    expected = scaled_dot_product_attention(q, repeated(k), repeated(v), is_causal=strict, scale=0.5)
    actual = lsh.attend(heads_of(q, k, v, scaling=0.5), buckets, rule)
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_lsh_padding_contributes_nothing(strict, shared):
    q, k, v = tensors(45, kv_heads=4)
    padding = right_padding(45)
    rule = Rule(chunk=8, strict=strict, causal=strict, shared=shared)
    buckets = hashed(q, k, padding=padding)
    before = lsh.attend(heads_of(q, k, v, scaling=0.5), buckets, rule)
    hidden = ~padding[:, None, :, None]
    after = lsh.attend(heads_of(q, k + 9 * hidden, v + 9 * hidden, scaling=0.5), buckets, rule)
    present = padding[:, None, :, None].expand_as(before)
    torch.testing.assert_close(after[present], before[present])
    assert torch.isfinite(after).all()


@pytest.mark.parametrize(("shared", "kv_heads"), [(False, 2), (True, 4)])
def test_only_strict_lsh_keeps_from_the_future(shared, kv_heads):
    def changed_by_the_future(strict):
        torch.manual_seed(1)
        q, k, v = tensors(60, kv_heads=kv_heads)
        rotation = hashing.rotations(WIDTH, 2, 4).double()
        rule = Rule(chunk=8, strict=strict, causal=True, shared=shared)

        def output(q, k, v):
            q = k if shared else q
            buckets = Hashes(*(hashing.buckets_of(x, rotation, 4, None) for x in (q, k)))
            return lsh.attend(heads_of(q, k, v, scaling=0.5), buckets, rule)[:, :, :40]

        later = [torch.cat([x[:, :, :40], torch.randn_like(x[:, :, 40:])], 2) for x in (q, k, v)]
        return float((output(*later) - output(q, k, v)).abs().max())

    assert changed_by_the_future(strict=True) < 1e-12
    assert changed_by_the_future(strict=False) > 1e-3


@pytest.mark.parametrize("shared", [False, True])
def test_lsh_decodes_as_its_last_position(shared):
    q, k, v = tensors(45, kv_heads=4 if shared else 2)
    q = k if shared else q
    rule = Rule(chunk=8, strict=True, causal=True, shared=shared)
    queries, keys = hashed(q, k)
    expected = lsh.attend(heads_of(q, k, v, scaling=0.5), Hashes(queries, keys), rule)[:, :, -1:]
    actual = lsh.decode(heads_of(q[:, :, -1:], k, v, scaling=0.5), Hashes(queries[..., -1:], keys), rule)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_lsh_gradients_are_those_of_finite_differences(strict, shared):
    q, k, v = (x.requires_grad_() for x in tensors(21, heads=2, kv_heads=2 if shared else 1, width=2))
    buckets = hashed(k if shared else q, k)
    rule = Rule(chunk=4, strict=strict, causal=True, shared=shared)
    inputs = (k, v) if shared else (q, k, v)

    def attention(*x):
        return lsh.attend(heads_of(x[0], *x[-2:], scaling=0.5), buckets, rule)

    assert torch.autograd.gradcheck(attention, inputs, fast_mode=True)


def test_lsh_drops_the_same_weights_in_both_directions():
    q, k, v = (x.requires_grad_() for x in tensors(21, heads=2, kv_heads=1, width=2))
    buckets, rule = hashed(q, k), Rule(chunk=4, strict=True, causal=True, shared=False)

    def attention(*x, dropout=0.4):
        torch.manual_seed(3)
        return lsh.attend(heads_of(*x, dropout=dropout), buckets, rule)

    assert torch.autograd.gradcheck(attention, (q, k, v), fast_mode=True)
    constant = torch.ones_like(v)
    assert not torch.allclose(attention(q, k, constant), constant[:, :1])
    assert float(attention(q, k, constant).detach().mean()) == pytest.approx(1, abs=0.15)
    assert torch.equal(attention(q, k, v, dropout=0.0), lsh.attend(heads_of(q, k, v), buckets, rule))


class Copies(TorchDispatchMode):
    """Counts those of tensors of this size."""

    def __init__(self, size):
        super().__init__()
        self.size, self.count = size, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.count += function.name() in {"aten::clone", "aten::copy_"} and result.numel() == self.size
        return result


def test_lsh_does_not_copy_everything_for_each_slab(monkeypatch):
    """Models give heads that are views of (B, n, H, d), of which no list of rows is a view."""
    rule, copies = Rule(chunk=4, strict=True, causal=True, shared=False), {}
    inputs = [x.transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for x in tensors(96, kv_heads=4)]
    buckets = hashed(*inputs[:2])
    for scores in (2**5, 2**20):
        monkeypatch.setattr(slabs, "_SCORES", {"cpu": scores})
        with Copies(inputs[0].numel()) as counted:
            torch.autograd.grad(lsh.attend(heads_of(*inputs), buckets, rule).transpose(1, 2).contiguous().sum(), inputs)
        copies[scores] = counted.count
    assert copies[2**5] == copies[2**20] > 0


@pytest.mark.parametrize("buckets", [4, 128])
def test_hashing_keeps_directions_together(buckets):
    x = torch.randn(1, 2, 200, WIDTH)
    rotation = hashing.rotations(WIDTH, 3, buckets)
    numbers = hashing.buckets_of(x, rotation, buckets, None)
    assert numbers.shape == (1, 2, 3, 200)
    assert numbers.min() >= 0
    assert buckets / 2 < numbers.max() < buckets
    assert torch.equal(hashing.buckets_of(5 * x, rotation, buckets, None), numbers)
    near, far = x + 0.05 * torch.randn_like(x), torch.randn_like(x)
    together = [(hashing.buckets_of(other, rotation, buckets, None) == numbers).float().mean() for other in (near, far)]
    assert together[0] > 0.8
    assert together[1] < 2 / math.sqrt(buckets)


@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize(("causal", "buckets"), [(True, 8), (False, 8), (True, 128)])
@pytest.mark.parametrize("padded", [False, True])
def test_published_lsh_is_that_of_transformers(rounds, causal, buckets, padded):
    from transformers import ReformerConfig
    from transformers.models.reformer.modeling_reformer import LSHSelfAttention

    length, chunk = 64, 8
    factors = [buckets] if buckets <= 64 else [8, 16]
    config = ReformerConfig(
        hidden_size=4 * WIDTH,
        attention_head_size=WIDTH,
        num_attention_heads=4,
        num_hashes=rounds,
        num_buckets=factors if len(factors) > 1 else buckets,
        lsh_attn_chunk_length=chunk,
        lsh_num_chunks_before=1,
        lsh_num_chunks_after=0,
        lsh_attention_probs_dropout_prob=0.0,
        is_decoder=causal,
        hash_seed=7,
    )
    # float64: in float32 their mask value of -1e5 rounds the sums of tokens that meet nothing but themselves
    theirs = LSHSelfAttention(config, layer_idx=0).eval().double()
    hidden = torch.randn(2, length, 4 * WIDTH, dtype=torch.float64)
    padding = right_padding(length) if padded else None
    expected = theirs(hidden, attention_mask=padding).hidden_states

    split = [linear(hidden).unflatten(-1, (4, WIDTH)).transpose(1, 2) for linear in (theirs.query_key, theirs.value)]
    torch.manual_seed(7)
    rotation = torch.randn(4, WIDTH, rounds, sum(factors) // 2, dtype=torch.float64)
    numbers = hashing.buckets_of(split[0], rotation, buckets, padding)
    rule = Rule(chunk=chunk, strict=False, causal=causal, shared=True)
    heads = heads_of(split[0], lsh.normalised(split[0]), split[1], scaling=WIDTH**-0.5)
    actual = lsh.attend(heads, Hashes(numbers, numbers), rule)
    actual = actual.transpose(1, 2).flatten(2)
    rows = torch.ones(2, length, dtype=torch.bool) if padding is None else padding
    torch.testing.assert_close(actual[rows], expected[rows], atol=1e-5, rtol=0)
