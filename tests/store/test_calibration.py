import platformdirs
import pytest

from effbench.store.calibration import Calibration, PairedNoise, Timer, calibration_file, matmul_key, read_calibration
from effbench.store.calibration import write_calibration as write
from effbench.store.machine import this_machine


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda name: str(tmp_path / name))


def made(**changes):
    fields = {
        "machine": this_machine().slug,
        "measured_at": "2026-01-02T03:04:05+00:00",
        "torch": "2.13.0",
        "timer": Timer(resolution_s=4e-8, cost_s=5e-8),
        "empty_trial_s": 0.2,
        "matmul_flops_per_s": {"cpu float32 1": 5e10},
        "copy_bytes_per_s": {"cpu 1": 1e10},
        "paired_noise": PairedNoise(sd={"train.tokens_per_s": 0.01}, rounds=10, threads=1, disturbed=0),
    }
    return Calibration(**(fields | changes))


def test_what_is_written_is_read_back():
    assert read_calibration() is None
    file = write(made())
    assert file == calibration_file(this_machine().slug)
    assert read_calibration() == made()


def test_another_machines_calibration_is_not_this_ones():
    write(made(machine="another"))
    assert read_calibration() is None


def test_a_file_of_another_form_is_no_calibration():
    file = write(made())
    file.write_text('{"matmul_flops_per_s": {}}')
    assert read_calibration() is None


def test_a_gpus_rate_does_not_depend_on_threads():
    assert matmul_key("cpu", "bfloat16", 2) == "cpu bfloat16 2"
    assert matmul_key("cuda", "bfloat16", 2) == matmul_key("cuda", "bfloat16", 1)
