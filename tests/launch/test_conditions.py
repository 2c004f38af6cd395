"""What disturbs a trial, from readings that the test makes, and from a real hog."""

import multiprocessing
import os
import sys
import types
from types import SimpleNamespace

import pytest

from effbench.launch import conditions, gpu
from effbench.launch.conditions import Reading, Watch, dirty_reason
from effbench.launch.gpu import GpuReading
from effbench.store.machine import this_machine
from effbench.store.record import Conditions

CORES = this_machine().cores


def reading(at, **changes):
    return Reading(**({"at": at, "busy_s": 0.0, "stolen_s": 0.0, "own_s": 0.0, "throttled_s": 0.0, "gpus": None} | changes))


def between(threads, before, after):
    readings = iter([before, after])
    return Watch(threads, read=lambda: next(readings)).conditions()


def test_others_are_what_is_busy_and_not_ours():
    found = between(1, reading(0, busy_s=100, own_s=50), reading(10, busy_s=118, own_s=59.5))
    assert found.other_cpu == pytest.approx(0.85)
    assert (found.wanted, found.cores, found.steal, found.throttled) == (1, CORES, 0.0, 0.0)


def test_what_cannot_be_read_is_absent():
    found = between(1, reading(0, busy_s=None, stolen_s=None, throttled_s=None), reading(10, busy_s=None, stolen_s=None))
    assert (found.other_cpu, found.steal, found.throttled, found.gpu_foreign) == (None, None, None, None)
    assert dirty_reason(found) is None


@pytest.mark.parametrize(
    ("cores", "wanted", "figures", "reason"),
    [
        (2, 1, {"other_cpu": 1.0}, None),  # on the core that was free
        (2, 1, {"other_cpu": 1.3}, "other programs used 1.30 cores, 1 of 2 were free"),
        (2, 2, {"other_cpu": 0.1}, None),
        (2, 2, {"other_cpu": 0.4}, "other programs used 0.40 cores, 0 of 2 were free"),
        (2, 4, {"other_cpu": 0.4}, "0 of 2 were free"),  # four ranks on two cores are their own choice; others are not
        (2, 1, {"steal": 0.1}, "host took 10%"),
        (2, 1, {"throttled": 0.5}, "quota held it back 50%"),
        (2, 1, {"gpu_throttled": 0.2}, "GPU was slowed down 20%"),
        (2, 1, {"gpu_foreign": 2}, "2 other processes were on a GPU"),
        (2, 1, {"gpu_foreign": 0, "gpu_throttled": 0.0}, None),
    ],
)
def test_the_rule(cores, wanted, figures, reason):
    found = dirty_reason(Conditions(cores=cores, wanted=wanted, **figures))
    assert found is None if reason is None else reason in found


def _burn(seconds):
    end = os.times().user + seconds
    while os.times().user < end:
        pass


def test_a_real_hog_of_ours_is_ours_and_of_others_is_theirs(monkeypatch):
    own = multiprocessing.get_context("fork").Process(target=_burn, args=(0.5,))
    watch = Watch(1)
    own.start()
    own.join()
    mine = watch.conditions()
    hog = multiprocessing.get_context("fork").Process(target=_burn, args=(0.5,))
    monkeypatch.setattr(conditions, "_own_cpu", lambda: 0.0)  # as if it were no child of this process
    watch = Watch(1)
    hog.start()
    hog.join()
    assert watch.conditions().other_cpu > mine.other_cpu + 0.4


class FakeNvml(types.ModuleType):
    """As much of nvidia-ml-py as is read, of two GPUs."""

    NVML_PERF_POLICY_THERMAL, NVML_PERF_POLICY_RELIABILITY, NVML_CLOCK_SM = "thermal", "reliability", "sm"

    class NVMLError_NotSupported(Exception):
        """As NVML raises it."""

    def __init__(self):
        super().__init__("pynvml")
        self.slowed = {(0, "thermal"): 0, (0, "reliability"): 0, (1, "thermal"): 0, (1, "reliability"): 0}
        self.supported, self.others = True, [[], []]

    def nvmlInit(self): ...

    def nvmlDeviceGetCount(self):
        return 2

    def nvmlDeviceGetHandleByIndex(self, index):
        return index

    def nvmlDeviceGetViolationStatus(self, handle, policy):
        if not self.supported:
            raise self.NVMLError_NotSupported
        return SimpleNamespace(violationTime=self.slowed[handle, policy])

    def nvmlDeviceGetClockInfo(self, handle, kind):
        return 1980

    def nvmlDeviceGetComputeRunningProcesses(self, handle):
        return self.others[handle]


@pytest.fixture
def nvml(monkeypatch):
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(gpu, "gpus", lambda: ("one", "two"))
    gpu._nvml.cache_clear()
    yield fake
    gpu._nvml.cache_clear()


def test_gpus_tell_how_long_they_were_slowed_and_who_else_is_there(nvml):
    before = gpu.read_gpus()
    nvml.slowed[1, "thermal"] = 2_000_000_000
    nvml.others = [[object()], []]
    after = gpu.read_gpus()
    assert after.slowed_since(before) == 2.0
    assert (before.processes, after.processes, after.clock_mhz) == (0, 1, 1980)
    found = between(1, reading(0, gpus=after), reading(10, gpus=after))
    assert (found.gpu_foreign, found.gpu_throttled, found.gpu_clock_mhz) == (1, 0.0, 1980)


def test_a_gpu_that_does_not_tell_has_no_figure(nvml):
    nvml.supported = False
    assert gpu.read_gpus() == GpuReading((), 1980, 0)
    assert gpu.read_gpus().slowed_since(gpu.read_gpus()) is None


def test_without_a_gpu_nothing_is_read(monkeypatch):
    monkeypatch.setattr(gpu, "gpus", lambda: ())
    gpu._nvml.cache_clear()
    assert gpu.read_gpus() is None
    gpu._nvml.cache_clear()
