"""The CUDA timer on a real device."""

import pytest
import torch

from effbench.worker.timing import timer_for

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.fixture
def device():
    return torch.device("cuda", torch.cuda.current_device())


def test_the_device_is_timed_and_not_the_launch(device):
    timer = timer_for(device)
    matrix = torch.randn(4096, 4096, device=device)
    timer(lambda: matrix @ matrix)
    one = min(timer(lambda: matrix @ matrix)[0] for _ in range(5))
    many = min(timer(lambda: [matrix @ matrix for _ in range(10)])[0] for _ in range(5))
    assert 5 * one < many < 20 * one


def test_earlier_work_does_not_count(device):
    timer = timer_for(device)
    matrix, small = torch.randn(8192, 8192, device=device), torch.ones(1, device=device)
    timer(lambda: matrix @ matrix)
    large = timer(lambda: matrix @ matrix)[0]
    for _ in range(5):
        matrix @ matrix
    assert timer(lambda: small + 1)[0] < large


def test_a_flushed_cache_makes_a_read_slower(device):
    timer = timer_for(device)
    size = torch.cuda.get_device_properties(device).L2_cache_size // 4
    data = torch.ones(size // 4, device=device)
    timer(data.sum)
    warm = min(timer(data.sum)[0] for _ in range(20))
    cold = min(timer(data.sum, flush=True)[0] for _ in range(20))
    assert cold > warm
