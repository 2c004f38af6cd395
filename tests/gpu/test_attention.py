"""Patterns of blocks as compiled FlexAttention on a real device, against the tensor code and against exact attention."""

import pytest
import torch
from effbench_plugins.attention import flex
from effbench_plugins.attention.form import Heads
from effbench_plugins.attention.random_blocks import RandomBlocks
from effbench_plugins.attention.routed_blocks import RoutedBlocks
from effbench_plugins.attention.window import Window
from torch import nn

from effbench.worker.timing import timer_for

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

FORMS = {
    "window": Window(200),
    "longformer": Window(200, first=16),
    "bigbird": RandomBlocks(64, window=3, outer=1, drawn=3, seed=0),
    "topk": RoutedBlocks(64, 8, first_query=True),
}
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}


class Layer(nn.Module):
    layer_idx = 0


def heads_of(n, dtype, *, m=None, batch=2, heads=8, groups=2, padding=None, causal=True):
    torch.manual_seed(0)
    q = torch.randn(batch, heads, n, 64, device="cuda", dtype=dtype)
    k, v = torch.randn(2, batch, groups, m or n, 64, device="cuda", dtype=dtype)
    return Heads(q, k, v, padding, 0.125, 0.0, causal)


def left_padding(n):
    return torch.arange(n, device="cuda") >= torch.tensor([[0], [n // 3]], device="cuda")


def run(form, heads, dtype=None):
    """Result and gradients, of tokens."""
    inputs = [x.detach().to(dtype or x.dtype).requires_grad_() for x in (heads.q, heads.k, heads.v)]
    result = form(Layer(), Heads(*inputs, heads.padding, heads.scaling, heads.dropout, heads.causal))
    if heads.padding is not None:
        result = result * heads.padding[:, -heads.q.shape[2] :, None, None]
    weights = torch.randn(result.shape, generator=torch.Generator().manual_seed(1)).to(result)
    return [result, *torch.autograd.grad((result * weights).sum(), inputs)]


@pytest.fixture
def kernels(monkeypatch):
    """How often kernels were asked for."""
    calls = []
    compiled = flex._compiled

    def asked(*, fixed):
        calls.append(fixed)
        return compiled(fixed=fixed)

    monkeypatch.setattr(flex, "_compiled", asked)
    return calls


CALLS = [(1024, 1024, True), (900, 900, True), (300, 1000, True), (1000, 1000, False)]


@pytest.mark.parametrize("padding", [None, left_padding])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(("name", "dtype"), [(name, dtype) for name in FORMS for dtype in TOLERANCE])
def test_kernels_agree_with_the_tensor_code(monkeypatch, kernels, name, dtype, call, padding):  # noqa: PLR0917 - fixtures
    """Which is run in float32 on the same numbers."""
    n, m, causal = call
    heads = heads_of(n, dtype, m=m, causal=causal, padding=padding and padding(m))
    if name == "topk":  # the type's rounding moves choices as well: both get those of this type
        chosen = FORMS[name]._chosen(heads, None)
        monkeypatch.setattr(RoutedBlocks, "_chosen", lambda *_: chosen)
    ours = run(FORMS[name], heads)
    assert kernels == [True]
    monkeypatch.setattr(flex, "applies", lambda _: False)
    for x, expected in zip(ours, run(FORMS[name], heads, torch.float32), strict=True):
        error = (x.float() - expected).norm() / expected.norm()
        assert error < TOLERANCE[dtype]
        assert x.isfinite().all()


@pytest.mark.parametrize("name", FORMS)
def test_autocast_and_evaluation_before_training_are_no_hindrance(kernels, name):
    heads = heads_of(512, torch.float32)
    with torch.inference_mode():
        FORMS[name](Layer(), heads)
    with torch.autocast("cuda", torch.bfloat16):
        result, *gradients = run(FORMS[name], heads)
    assert kernels == [False, True]
    assert result.dtype is torch.bfloat16
    assert all(x.dtype is torch.float32 and x.isfinite().all() for x in gradients)


@pytest.mark.parametrize("padding", [None, left_padding])
@pytest.mark.parametrize("name", FORMS)
def test_many_lengths_share_a_few_kernels_that_are_right(monkeypatch, name, padding):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    sizes = [(300 + 13 * more, 2 + more % 3) for more in range(20)]
    with torch.inference_mode():
        for n, batch in sizes:
            of_rows = padding and padding(n)[1:].expand(batch, -1)
            heads = heads_of(n, torch.float32, batch=batch, padding=of_rows)
            ours = FORMS[name](Layer(), heads)
            with monkeypatch.context() as patched:
                patched.setattr(flex, "applies", lambda _: False)
                torch.testing.assert_close(ours, FORMS[name](Layer(), heads), atol=1e-4, rtol=0)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 4


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("name", FORMS)
def test_at_long_lengths_a_pattern_is_not_slower_than_attention_to_everything(name, backward):
    heads = heads_of(16384, torch.bfloat16, batch=1)
    inputs = [x.requires_grad_(backward) for x in (heads.q, heads.k, heads.v)]

    def of(attend):
        def action():
            result = attend()
            return torch.autograd.grad(result, inputs, result) if backward else result

        return action

    exact = of(lambda: nn.functional.scaled_dot_product_attention(*inputs, is_causal=True, enable_gqa=True))
    ours = of(lambda: FORMS[name](Layer(), heads))
    timer = timer_for(torch.device("cuda", torch.cuda.current_device()))
    for action in (exact, ours):
        timer(action)  # compiles
    pairs = [(timer(ours)[0], timer(exact)[0]) for _ in range(10)]
    assert min(x for x, _ in pairs) < min(y for _, y in pairs)


def test_kernels_keep_and_make_no_more_than_a_few_tensors_as_large_as_the_queries():
    heads = heads_of(32768, torch.bfloat16, batch=1)
    run(FORMS["window"], heads)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run(FORMS["window"], heads)
    assert torch.cuda.max_memory_allocated() - before < 20 * heads.q.untyped_storage().nbytes()
