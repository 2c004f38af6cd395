"""What `effbench calibrate` measured on this machine: one file in the user's cache folder, read by meters and people."""

from pathlib import Path

import platformdirs
from pydantic import BaseModel, ConfigDict, ValidationError

from effbench.store.machine import this_machine
from effbench.store.store import write_atomic


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Timer(_Part):
    """The clock that the CPU is timed with."""

    resolution_s: float
    """The smallest step it was seen to make."""
    cost_s: float
    """Of looking at it once."""


class PairedNoise(_Part):
    """How far two measurements of the same stack differ within a round."""

    sd: dict[str, float]
    """By metric: standard deviation of the per-round log ratios, so 0.01 is about 1 %."""
    rounds: int
    threads: int
    disturbed: int
    """Trials in which other programs took part of the machine; they count here, for it is this machine as it is."""


class Calibration(_Part):
    """One machine's own floor."""

    machine: str
    measured_at: str
    """ISO 8601, UTC."""
    torch: str
    timer: Timer
    empty_trial_s: float
    """Median time, door to door, of a trial that only loads the shipped model."""
    matmul_flops_per_s: dict[str, float]
    """Highest rate of a square matrix product, by `matmul_key`; a type that the device cannot multiply is missing."""
    copy_bytes_per_s: dict[str, float]
    """Bytes read plus bytes written, copying more than the caches hold, by `device threads`."""
    paired_noise: PairedNoise


def matmul_key(device: str, dtype: str, threads: int) -> str:
    """`cpu float32 2`. A GPU's rate does not depend on the host's threads: there it is always 1."""
    return f"{device} {dtype} {threads if device == 'cpu' else 1}"


def calibration_file(machine: str) -> Path:
    """Where the calibration of a machine, named by its slug, is kept."""
    return Path(platformdirs.user_cache_dir("effbench")) / f"calibration-{machine}.json"


def read_calibration() -> Calibration | None:
    """This machine's; None where it was never made, or by an effbench that wrote another form."""
    if not any(calibration_file("").parent.glob("calibration-*.json")):
        return None  # without asking the machine what it is, which takes time where there is a GPU
    file = calibration_file(this_machine().slug)
    try:
        return Calibration.model_validate_json(file.read_bytes()) if file.exists() else None
    except ValidationError:
        return None


def write_calibration(calibration: Calibration) -> Path:
    """Keep it in place of an earlier one; returns the file."""
    file = calibration_file(calibration.machine)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, calibration.model_dump_json(indent=2).encode() + b"\n")
    return file
