"""Energy from made-up counters: RAPL's files on the CPU, zeus on CUDA."""

import importlib.machinery
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from effbench_plugins.meters import energy
from effbench_plugins.meters.energy import Energy

from effbench.plugin import Observation
from tests.records import make_cell


def phase(name, during=lambda: None, device="cpu", **samples):
    meter = Energy()
    cell = make_cell(batch_size=2, new_tokens=5, device=device)
    observation = Observation(cell, name, samples={key: [1.0] * count for key, count in samples.items()})
    meter.begin(observation)
    during()
    return {name: summary.median for name, summary in meter.end(observation).items()}


class TestCpu:
    @pytest.fixture
    def packages(self, tmp_path, monkeypatch):
        monkeypatch.setattr(energy, "_POWERCAP", tmp_path)
        monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)

        def write(name, kind, microjoules):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / "name").write_text(f"{kind}\n")
            (tmp_path / name / "energy_uj").write_text(f"{microjoules}\n")
            (tmp_path / name / "max_energy_range_uj").write_text("1000000000\n")

        write("intel-rapl:0", "package-0", 100_000_000)
        write("intel-rapl:1", "package-1", 999_000_000)
        write("intel-rapl:0:0", "core", 0)
        return write

    def work(self, packages):
        packages("intel-rapl:0", "package-0", 120_000_000)
        packages("intel-rapl:1", "package-1", 9_000_000)  # ran over its range: 10 J
        packages("intel-rapl:0:0", "core", 77_000_000)  # part of the package: not counted twice

    def test_of_all_packages_by_step_and_by_generated_token(self, packages):
        assert phase("train", lambda: self.work(packages), step=10) == {"train.step_energy_j": 3.0}
        packages("intel-rapl:0", "package-0", 100_000_000)
        packages("intel-rapl:1", "package-1", 999_000_000)
        found = phase("infer", lambda: self.work(packages), prefill=3, decode=3)
        assert found == {"infer.token_energy_j": 30.0 / (3 * 2 * 5)}

    def test_ranks_share_out_the_machine_that_they_share(self, packages, monkeypatch):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
        assert phase("train", lambda: self.work(packages), step=10) == {"train.step_energy_j": 1.5}

    def test_a_counter_that_stands_still_has_measured_nothing(self, packages):
        assert phase("train", step=10) == {}

    def test_other_phases_are_not_measured(self, packages):
        assert phase("load", lambda: self.work(packages)) == {}


def test_no_sensor_no_metric(monkeypatch, tmp_path):
    monkeypatch.setattr(energy, "_POWERCAP", tmp_path / "missing")
    assert phase("train", step=10) == {}


class TestCuda:
    @pytest.fixture
    def zeus(self, monkeypatch):
        """zeus 0.16's ZeusMonitor as far as the meter uses it: named windows that end with time and total_energy."""
        measured = SimpleNamespace(time=2.0, total_energy=60.0, monitors=[])

        class ZeusMonitor:
            def __init__(self, gpu_indices=None, cpu_indices=None):
                measured.monitors.append((gpu_indices, cpu_indices))
                self.windows = set()

            def begin_window(self, key, sync_execution=True):
                self.windows.add(key)

            def end_window(self, key, sync_execution=True):
                self.windows.remove(key)
                return SimpleNamespace(time=measured.time, total_energy=measured.total_energy)

        for name in ("zeus", "zeus.monitor"):
            module = ModuleType(name)
            module.__spec__ = importlib.machinery.ModuleSpec(name, None)
            monkeypatch.setitem(sys.modules, name, module)
        sys.modules["zeus.monitor"].ZeusMonitor = ZeusMonitor
        return measured

    @pytest.fixture(autouse=True)
    def _gpu(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))

    def test_of_this_ranks_own_gpu(self, zeus):
        assert phase("train", device="cuda", step=10) == {"train.step_energy_j": 6.0}
        assert zeus.monitors == [([3], [])]

    def test_a_window_of_few_counter_updates_is_no_measurement(self, zeus):
        zeus.time = 0.4
        assert phase("train", device="cuda", step=10) == {}

    def test_a_gpu_without_a_counter_has_no_metric(self, zeus, monkeypatch):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
        assert phase("train", device="cuda", step=10) == {}
        assert not zeus.monitors  # which would have sampled power in a process of its own

    def test_without_zeus_no_metric(self, monkeypatch):
        monkeypatch.setattr(energy, "find_spec", lambda name: None)
        assert phase("train", device="cuda", step=10) == {}


def test_ranks_add_up():
    assert {metric.across_ranks for metric in Energy.metrics} == {"sum"}
