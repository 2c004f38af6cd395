"""What disturbs a trial, from readings that the test makes, and from a real hog."""

import multiprocessing
import os
import sys
import types
from pathlib import Path
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
    return Watch(threads, read=lambda gpus: next(readings)).conditions()


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
    found = dirty_reason(Conditions(seconds=10, cores=cores, wanted=wanted, **figures))
    assert found is None if reason is None else reason in found


@pytest.mark.parametrize(("seconds", "disturbed"), [(0.1, False), (10, True)])
def test_a_few_ticks_of_the_kernels_clock_do_not_disturb_a_short_trial(seconds, disturbed):
    for figures in ({"other_cpu": 0.3}, {"steal": 0.2}):
        found = dirty_reason(Conditions(seconds=seconds, cores=2, wanted=2, **figures))
        assert (found is not None) == disturbed


def test_time_stolen_from_one_busy_thread_is_not_thinned_by_idle_cores():
    found = between(1, reading(0), reading(10, busy_s=8, own_s=8, stolen_s=2))
    assert found.steal == pytest.approx(0.2)


STAT = """cpu  1000 0 1000 9000 0 0 0 300 0 0
cpu0 100 10 50 1000 70 3 4 20 99 0
cpu1 200 0 50 1000 70 0 0 30 0 0
cpu10 700 0 900 7000 0 0 0 250 0 0
intr 1
"""


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Stand-ins for files below /proc; `write` makes one."""

    def path(name):
        return tmp_path / str(name).removeprefix("/proc/").replace("/", "_") if str(name).startswith("/proc/") else Path(name)

    monkeypatch.setattr(conditions, "Path", path)
    return lambda name, text: path(name).write_text(text)


def test_only_the_cores_that_may_be_used_are_counted(files, monkeypatch):
    files("/proc/stat", STAT)
    ticks = os.sysconf("SC_CLK_TCK")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    assert conditions._machine_cpu() == (417 / ticks, 50 / ticks)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {10})
    assert conditions._machine_cpu() == (1600 / ticks, 250 / ticks)


def test_without_counters_there_are_no_figures(files):
    assert conditions._machine_cpu() == (None, None)
    assert conditions._throttled() is None


def test_quotas_of_control_groups_of_both_versions_and_of_those_around(files, tmp_path, monkeypatch):
    monkeypatch.setattr(conditions, "_CGROUPS", tmp_path)
    files("/proc/self/cgroup", "0::/outer/inner\n")
    assert conditions._throttled() is None
    (tmp_path / "outer/inner").mkdir(parents=True)
    (tmp_path / "outer/inner/cpu.stat").write_text("usage_usec 5\nthrottled_usec 500000\n")
    (tmp_path / "outer/cpu.stat").write_text("throttled_usec 1000000\n")
    assert conditions._throttled() == 1.5
    files("/proc/self/cgroup", "3:memory:/outer\n2:cpu,cpuacct:/mine\n1:cpuset:/\n")
    (tmp_path / "cpu,cpuacct/mine").mkdir(parents=True)
    (tmp_path / "cpu,cpuacct/mine/cpu.stat").write_text("nr_periods 4\nthrottled_time 2000000000\n")
    assert conditions._throttled() == 2.0


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

    class NVMLError(Exception):
        """What all of NVML's errors are."""

    class NVMLError_NotSupported(NVMLError):
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

    def nvmlDeviceGetHandleByUUID(self, uuid):
        return {"GPU-b": 1}[uuid]

    def nvmlDeviceGetClockInfo(self, handle, kind):
        if not self.supported:
            raise self.NVMLError_NotSupported
        return 1980 + handle

    def nvmlDeviceGetComputeRunningProcesses(self, handle):
        return self.others[handle]


@pytest.fixture
def nvml(monkeypatch):
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(gpu, "gpus", lambda: ("one", "two"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    gpu._nvml.cache_clear()
    yield fake
    gpu._nvml.cache_clear()


def test_gpus_tell_how_long_they_were_slowed_and_who_else_is_there(nvml):
    before = gpu.read_gpus(2)
    nvml.slowed[1, "thermal"] = 2_000_000_000
    nvml.others = [[object()], []]
    after = gpu.read_gpus(2)
    assert after.slowed_since(before) == 2.0
    assert (before.processes, after.processes, after.clock_mhz) == (0, 1, 1980)
    found = between(1, reading(0, gpus=after), reading(10, gpus=after))
    assert (found.gpu_foreign, found.gpu_throttled, found.gpu_clock_mhz) == (1, 0.0, 1980)


def test_a_gpu_that_does_not_tell_has_no_figure(nvml):
    nvml.supported = False
    assert gpu.read_gpus(2) == GpuReading((), None, 0)
    assert gpu.read_gpus(2).slowed_since(gpu.read_gpus(2)) is None


@pytest.mark.parametrize(("visible", "found"), [(None, (1980, 0)), ("1", (1981, 3)), ("GPU-b,0", (1981, 3))])
def test_only_the_gpus_that_the_trial_uses_are_read(nvml, monkeypatch, visible, found):
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    nvml.others = [[], [object()] * 3]
    reading = gpu.read_gpus(1)
    assert (reading.clock_mhz, reading.processes) == found
    assert len(reading.slowed_s) == 1


def test_a_trial_on_the_cpu_is_not_disturbed_by_who_uses_a_gpu(nvml):
    nvml.others = [[object()], []]
    assert gpu.read_gpus(0) is None
    assert Watch(1).conditions().gpu_foreign is None


def test_a_driver_that_does_not_answer_leaves_figures_absent(nvml, monkeypatch):
    def fail():
        raise nvml.NVMLError

    monkeypatch.setattr(nvml, "nvmlInit", fail)
    assert gpu.read_gpus(1) is None


def test_without_a_gpu_nothing_is_read(monkeypatch):
    monkeypatch.setattr(gpu, "gpus", lambda: ())
    gpu._nvml.cache_clear()
    assert gpu.read_gpus(1) is None
    gpu._nvml.cache_clear()
