"""What each timer counts, with a clock and with CUDA events that only the test moves."""

from types import SimpleNamespace

import pytest
import torch

from effbench.worker.timing import CpuTimer, CudaTimer, timer_for


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def work(self, seconds):
        self.now += seconds
        return "result"


def test_a_cpu_action_takes_from_call_to_return():
    clock = Clock()
    timer = timer_for(torch.device("cpu"), clock)
    clock.work(100)
    assert timer(lambda: clock.work(2.5)) == (2.5, "result")
    clock.work(100)
    assert timer(lambda: clock.work(0.5), flush=True) == (0.5, "result")


def test_an_action_that_fails_is_no_sample():
    with pytest.raises(ZeroDivisionError):
        CpuTimer(Clock())(lambda: 1 / 0)


class FakeCuda:
    """A device with one queue: what is put in it runs only when somebody waits. Milliseconds, as events tell them."""

    def __init__(self, monkeypatch):
        self.now, self.queue, self.log = 0.0, [], []
        fake = self

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                fake.queue.append(lambda: setattr(self, "at", fake.now))

            def elapsed_time(self, end):
                return end.at - self.at

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "synchronize", self.synchronize)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(L2_cache_size=50 * 2**20))
        monkeypatch.setattr(torch, "empty", self.empty)

    def launch(self, name, milliseconds):
        def run():
            self.log.append(name)
            self.now += milliseconds

        self.queue.append(run)
        return name

    def synchronize(self, device):
        for run in self.queue:
            run()
        self.queue.clear()

    def empty(self, size, *, dtype, device):
        return SimpleNamespace(zero_=lambda: self.launch(f"zeros over {size // 2**20} MiB of {dtype}", 7.0))


@pytest.fixture
def cuda(monkeypatch):
    return FakeCuda(monkeypatch)


DEVICE = torch.device("cuda", 0)


def test_cuda_counts_what_the_action_put_in_line_and_nothing_before(cuda):
    timer = timer_for(DEVICE)
    assert isinstance(timer, CudaTimer)
    cuda.launch("earlier", 500.0)
    assert timer(lambda: cuda.launch("mine", 3.0)) == (0.003, "mine")
    assert cuda.log == ["earlier", "mine"]
    assert not cuda.queue  # waited for: the next action starts on an idle device


def test_flushing_overwrites_more_than_the_cache_and_is_not_timed(cuda):
    seconds, _ = CudaTimer(DEVICE)(lambda: cuda.launch("mine", 3.0), flush=True)
    assert seconds == 0.003
    assert cuda.log == ["zeros over 100 MiB of torch.uint8", "mine"]


def test_nothing_is_flushed_unasked(cuda):
    CudaTimer(DEVICE)(lambda: cuda.launch("mine", 3.0))
    assert cuda.log == ["mine"]
