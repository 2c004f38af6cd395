"""Performer, Linformer and Reformer: the mathematics on plain tensors."""

from itertools import pairwise

import pytest
import torch
from effbench_plugins.attention import lsh, random_features
from effbench_plugins.attention.chunks import Rule
from effbench_plugins.attention.length_projection import MODULE, LengthProjection, Slots
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from effbench.plugin import InputError
from tests.techniques.heads import WIDTH, NoLargeTensor, hashed, heads_of, repeated, right_padding, tensors


@pytest.fixture(autouse=True)
def same_draws():
    torch.manual_seed(0)


# Performer


def feature_matrix(x, projection):
    """The features as the paper writes them; nothing is stabilised."""
    return (x @ projection.T - x.square().sum(-1, keepdim=True) / 2).exp()


def performer_reference(q, k, v, projection, allowed):
    k, v = repeated(k), repeated(v)
    weights = (feature_matrix(q, projection) @ feature_matrix(k, projection).mT) * allowed
    return (weights / weights.sum(-1, keepdim=True)) @ v


@pytest.mark.parametrize("length", [3, 64, 150])
@pytest.mark.parametrize("padded", [False, True])
def test_performer_is_its_own_quadratic_formula(length, padded):
    q, k, v = tensors(length)
    projection = random_features.orthogonal_gaussian(12, WIDTH).double()
    padding = torch.arange(length) >= torch.tensor([[0], [2]]) if padded else None  # left, as prompts are padded
    present = torch.ones(2, 1, 1, length) if padding is None else padding[:, None, None]
    rows = slice(2 if padded else 0, None)  # a padded query sees nothing

    expected = performer_reference(q, k, v, projection, present)
    actual = random_features.bidirectional(heads_of(q, k, v, padding), projection)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)

    expected = performer_reference(q, k, v, projection, present * torch.ones(length, length).tril())
    actual, _ = random_features.causal(heads_of(q, k, v, padding), projection)
    torch.testing.assert_close(actual[:, :, rows], expected[:, :, rows], atol=1e-5, rtol=0)
    assert torch.isfinite(actual).all()


def test_performer_goes_on_from_its_sums():
    q, k, v = tensors(150)
    projection = random_features.orthogonal_gaussian(12, WIDTH).double()
    whole, _ = random_features.causal(heads_of(q, k, v), projection)
    parts, sums = [], None
    for part in (slice(0, 100), slice(100, 149), slice(149, 150)):
        output, sums = random_features.causal(heads_of(*(x[:, :, part] for x in (q, k, v))), projection, sums)
        parts.append(output)
    torch.testing.assert_close(torch.cat(parts, 2), whole)


def test_performer_comes_nearer_with_more_features():
    q, k, v = tensors(64, heads=4, kv_heads=4)

    def error(features, size):
        """Relative, at scores q·k with a standard deviation of size² · √8."""
        exact = scaled_dot_product_attention(size * q, size * k, v, scale=1.0)
        draws = [random_features.orthogonal_gaussian(features, WIDTH).double() for _ in range(10)]
        outputs = [random_features.bidirectional(heads_of(size * q, size * k, v), draw) for draw in draws]
        return torch.stack([(output - exact).square().mean() for output in outputs]).mean().div(exact.square().mean()).sqrt()

    errors = [error(features, 0.3) for features in (16, 64, 256, 1024)]
    assert all(more < 0.75 * fewer for fewer, more in pairwise(errors)), errors
    assert errors[-1] < 0.1
    assert error(1024, 1.5) > 0.5  # and at large scores it does not, as the docstring says


@pytest.mark.parametrize("size", [1.0, 30.0])
def test_performer_does_not_see_the_future_whatever_the_size_of_keys(size):
    q, k, v = tensors(150, dtype=torch.float32)
    k[:, :, :100] *= size  # long keys have weights that underflow beside those of later, short ones
    projection = random_features.orthogonal_gaussian(12, WIDTH)
    before, _ = random_features.causal(heads_of(q, k, v), projection)
    changed = [torch.cat([x[:, :, :100], torch.randn_like(x[:, :, 100:])], 2) for x in (q, k, v)]
    after, _ = random_features.causal(heads_of(*changed), projection)
    torch.testing.assert_close(after[:, :, :100], before[:, :, :100], atol=1e-6, rtol=0)
    assert not torch.allclose(after[:, :, 100:], before[:, :, 100:], atol=1e-2)
    alone, _ = random_features.causal(heads_of(*(x[:, :, :100] for x in (q, k, v))), projection)
    torch.testing.assert_close(after[:, :, :100], alone, atol=1e-6, rtol=0)
    assert (alone[:, :, 99] != 0).all()


def test_performers_rows_are_orthogonal_and_as_long_as_gaussian_ones():
    projection = random_features.orthogonal_gaussian(4096, 8)
    block = projection[:8] @ projection[:8].T
    torch.testing.assert_close(block, block.diag().diag(), atol=1e-5, rtol=0)
    assert projection.square().sum(1).mean() == pytest.approx(8, rel=0.05)


def test_performers_gradients_are_those_of_finite_differences():
    q, k, v = (x.requires_grad_() for x in tensors(70, heads=2, kv_heads=1, width=2))
    projection = random_features.orthogonal_gaussian(4, 2).double()
    padding = right_padding(70)
    fast = {"fast_mode": True, "atol": 1e-4}
    assert torch.autograd.gradcheck(lambda *x: random_features.causal(heads_of(*x, padding), projection)[0], (q, k, v), **fast)
    assert torch.autograd.gradcheck(
        lambda *x: random_features.bidirectional(heads_of(*x, padding), projection), (q, k, v), **fast
    )


# Linformer


def slots(projection, q, k, v, padding=None, *, scaling=1.0):
    layer = nn.Module()
    layer.add_module(MODULE, projection)
    return Slots()(layer, heads_of(q, k, v, padding, scaling=scaling, causal=False)).transpose(1, 2)


@pytest.mark.parametrize("padded", [False, True])
def test_linformer_is_its_formula(padded):
    q, k, v = tensors(20)
    projection = LengthProjection(24, 6, shared=False).double()
    torch.nn.init.normal_(projection.keys)
    torch.nn.init.normal_(projection.values)
    padding = right_padding(20) if padded else None
    actual = slots(projection, q, k, v, padding, scaling=0.3)

    mask = torch.ones(2, 1, 20, 1) if padding is None else padding[:, None, :, None]
    keys = torch.einsum("sn,bhnd->bhsd", projection.keys[:, :20], repeated(k) * mask)
    values = torch.einsum("sn,bhnd->bhsd", projection.values[:, :20], repeated(v) * mask)
    expected = (0.3 * q @ keys.mT).softmax(-1) @ values
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=0)


def test_linformer_with_as_many_slots_as_tokens_starts_as_exact_attention():
    q, k, v = tensors(20)
    projection = LengthProjection(20, 20, shared=True).double()
    expected = scaled_dot_product_attention(q, repeated(k), repeated(v))
    torch.testing.assert_close(slots(projection, q, k, v, scaling=WIDTH**-0.5), expected, atol=1e-6, rtol=0)


def test_linformers_slots_start_as_means_of_equal_shares():
    projection = LengthProjection(10, 4, shared=True)
    assert projection.values is projection.keys
    expected = torch.tensor([0.4, 0.4, 0.2, 0, 0, 0, 0, 0, 0, 0])
    torch.testing.assert_close(projection.keys[0], expected)
    torch.testing.assert_close(projection.keys.sum(1), torch.ones(4))


def test_linformers_padding_contributes_nothing():
    q, k, v = tensors(20)
    projection = LengthProjection(20, 6, shared=False).double()
    padding = right_padding(20)
    before = slots(projection, q, k, v, padding)
    hidden = ~padding[:, None, :, None]
    after = slots(projection, q, k + 9 * hidden, v.masked_fill(hidden, torch.nan), padding)
    torch.testing.assert_close(after, before)


def test_linformer_refuses_what_is_longer_than_its_projection():
    projection = LengthProjection(16, 4, shared=True).double()
    with pytest.raises(InputError, match=r"at most 16 tokens .* given 20"):
        slots(projection, *tensors(20))


def test_linformers_gradients_are_those_of_finite_differences():
    projection = LengthProjection(20, 4, shared=False).double()
    inputs = [x.requires_grad_() for x in tensors(20, heads=2, kv_heads=1, width=2)]
    weights = [projection.keys, projection.values]
    padding = right_padding(20)

    def attention(q, k, v, *_):
        return slots(projection, q, k, v, padding, scaling=0.7)

    assert torch.autograd.gradcheck(attention, (*inputs, *weights), fast_mode=True)


# All of them


def linear_forms(length):
    projection = random_features.orthogonal_gaussian(16, WIDTH)
    learned = LengthProjection(length, 32, shared=False)

    def reformer(q, k, v, strict):
        rule = Rule(chunk=32, strict=strict, causal=strict, shared=False)
        return lsh.attend(heads_of(q, k, v), hashed(q, k, buckets=128), rule)

    return {
        "performer": lambda q, k, v: random_features.bidirectional(heads_of(q, k, v), projection),
        "causal performer": lambda q, k, v: random_features.causal(heads_of(q, k, v), projection)[0],
        "linformer": lambda q, k, v: slots(learned, q, k, v),
        "reformer": lambda q, k, v: reformer(q, k, v, True),
        "published reformer": lambda q, k, v: reformer(q, k, v, False),
    }


@pytest.mark.parametrize("form", linear_forms(8))
def test_nothing_is_quadratic_in_the_length(form):
    length = 2048
    q, k, v = (torch.randn(1, 1, length, WIDTH, requires_grad=True) for _ in range(3))
    with NoLargeTensor(length * length):
        linear_forms(length)[form](q, k, v).sum().backward()
    assert all(torch.isfinite(x.grad).all() for x in (q, k, v))


def test_the_watch_for_squares_sees_one():
    x = torch.randn(1, 1, 64, WIDTH)
    with pytest.raises(AssertionError, match="64, 64"), NoLargeTensor(64 * 64):
        x @ x.mT
