import pytest
import torch

from effbench.worker import calibration

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(calibration, "_SIZES", {"cpu": (16, 32)})


def test_the_clock_moves_in_steps_and_costs_something():
    found = calibration.clock(1000)
    assert 0 < found["resolution_s"] < 1
    assert 0 < found["cost_s"] < 1


def test_every_number_of_threads_on_small_machines_and_few_on_large_ones():
    assert calibration.thread_counts(2) == [1, 2]
    assert calibration.thread_counts(24) == [1, 2, 3, 4, 5, 6, 7, 8, 16, 24]


def test_a_peak_for_each_type_and_number_of_threads(small):
    found = dict(calibration.matmul_peaks(CPU, [1, 2], seconds=0.01))
    assert {f"cpu {dtype} {n}" for dtype in ("float32", "bfloat16", "float16", "int8") for n in (1, 2)} == set(found)
    assert all(rate > 0 for rate in found.values())


def test_a_type_that_cannot_be_multiplied_is_missing(small, monkeypatch):
    monkeypatch.setattr(calibration, "DTYPES", (torch.float32, torch.uint16))
    assert list(dict(calibration.matmul_peaks(CPU, [1], seconds=0.01))) == ["cpu float32 1"]


def test_a_machine_that_cannot_multiply_float32_is_a_failure(small, monkeypatch):
    def refuse(left, right):
        raise RuntimeError("no kernel")

    monkeypatch.setattr(torch, "mm", refuse)
    with pytest.raises(RuntimeError, match="no kernel"):
        dict(calibration.matmul_peaks(CPU, [1], seconds=0.01))


class Ticks:
    """A timer under which each action takes what comes next in a list; the first one warms up."""

    def __init__(self, *seconds):
        self.seconds = list(seconds)

    def __call__(self, action, *, flush=False):
        action()
        return self.seconds.pop(0), None


def test_rates_are_of_the_shortest_run_that_is_not_warm_up(monkeypatch):
    monkeypatch.setattr(calibration, "timer_for", lambda device: Ticks(0.1, 4.0, 2.0, 3.0))
    assert dict(calibration.copy_rates(CPU, [1], seconds=1.0, size=1000)) == {"cpu 1": 2 * 1000 / 2.0}


def test_a_product_counts_two_operations_per_element_of_its_volume_and_long_ones_are_left_out(small, monkeypatch):
    monkeypatch.setattr(calibration, "DTYPES", (torch.float32,))
    monkeypatch.setattr(calibration, "timer_for", lambda device: Ticks(1.0, 2.0, 2.0, 2.0, 9.0, 1.0, 1.0, 1.0))
    assert dict(calibration.matmul_peaks(CPU, [1], seconds=1.0)) == {"cpu float32 1": 2 * 16**3 / 1.0}
