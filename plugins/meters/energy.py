"""Energy, from the counters of the hardware."""

import os
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from effbench.plugin import Meter, Metric, Observation, Summary

_POWERCAP = Path("/sys/class/powercap")
_NVML_UPDATE_S = 0.1  # the GPU's counter moves about this often; a window of ten of them is right to 10 %


class Energy(Meter):
    """Joules of the device that computes, idle power included; absent without a sensor, never estimated.

    CUDA: this rank's GPU, by NVML's energy counter through zeus (`pip install 'effbench[energy]'`; You et al. 2023, NSDI), in
    phases of a second or more. CPU: the packages' RAPL counters, read where the system allows it (mostly to root): of the whole
    machine, so shared out over its ranks. zeus would start a polling process for these in every trial.
    """

    name: ClassVar = "energy"
    metrics: ClassVar = (
        Metric("train.step_energy_j", "J", "lower", "Energy of the training phase / its steps, over all ranks.", "sum"),
        Metric(
            "infer.token_energy_j", "J", "lower", "Energy of the inference phase / tokens generated, over all ranks.", "sum"
        ),
    )
    _end: "Callable[[], float | None] | None" = None

    def begin(self, observation: Observation) -> None:
        """Read the counter."""
        self._end = None
        if observation.phase in ("train", "infer"):
            self._end = _gpu_window() if observation.cell.device == "cuda" else _cpu_window()

    def end(self, observation: Observation) -> Mapping[str, Summary]:
        """The counter's difference, by what was done in the whole phase, warm-up included."""
        joules = self._end() if self._end else None
        if not joules:  # a counter that did not move has measured nothing
            return {}
        steps, loops = (len(observation.samples.get(name, ())) for name in ("step", "prefill"))
        name, count = ("train.step_energy_j", steps)
        if observation.phase == "infer":
            cell = observation.cell
            name, count = "infer.token_energy_j", loops * cell.batch_size * cell.new_tokens if cell.facts.causal else 0
        return {name: Summary(median=joules / count, unit="J")} if count else {}


def _gpu_window() -> "Callable[[], float | None] | None":
    import torch

    device = torch.cuda.current_device()
    # Before Volta there is no energy counter, and zeus would sample power in another process.
    if find_spec("zeus") is None or torch.cuda.get_device_capability(device) < (7, 0):
        return None
    from zeus.monitor import ZeusMonitor

    monitor: Any = ZeusMonitor(gpu_indices=[device], cpu_indices=[])
    monitor.begin_window("phase")

    def end() -> float | None:
        measured = monitor.end_window("phase")
        return float(measured.total_energy) if measured.time >= 10 * _NVML_UPDATE_S else None

    return end


def _cpu_window() -> "Callable[[], float | None] | None":
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # torchrun's; each rank stands for its part of the machine
    start = _package_counters()
    return (lambda: _joules(start, _package_counters()) / ranks_here) if start else None


def _package_counters() -> dict[Path, int]:
    """Microjoules by RAPL package; empty where there is none, or where one may not be read."""
    try:
        packages = [d for d in _POWERCAP.glob("intel-rapl:*") if (d / "name").read_text().startswith("package")]
        return {package: int((package / "energy_uj").read_text()) for package in packages}
    except OSError:  # no permission
        return {}


def _joules(start: dict[Path, int], end: dict[Path, int]) -> float:
    """The difference of all packages; a counter that ran over its range, which takes many minutes, did so once."""
    used = 0
    for package, before in start.items():
        turn = int((package / "max_energy_range_uj").read_text()) if end[package] < before else 0
        used += end[package] - before + turn
    return used / 1e6
