"""`effbench calibrate`: its parts, and what it says."""

import math

import pytest
import torch

from effbench.cli.calibrate import describe
from effbench.launch.calibrate import paired_noise
from effbench.plugin import Summary
from effbench.store.calibration import Calibration, PairedNoise, Timer
from effbench.worker import calibration
from tests.records import make_record

FOUND = Calibration(
    machine="m",
    measured_at="2026-01-01T00:00:00+00:00",
    torch="2.13.0",
    timer=Timer(resolution_s=1e-8, cost_s=4e-8),
    empty_trial_s=0.05,
    matmul_flops_per_s={"cpu float32 1": 42e9},
    copy_bytes_per_s={"cpu 1": 9e9},
    paired_noise=PairedNoise(sd={"train.tokens_per_s": 0.015}, rounds=8, threads=1, disturbed=3),
)


def test_it_says_what_can_be_told_in_how_many_rounds():
    text = "\n".join(describe(FOUND, 0.03))
    assert "matmul peak      42.0 GFLOP/s   cpu float32 1 thread" in text
    assert "copy bandwidth   9.0 GB/s   cpu 1 thread" in text
    line = next(line for line in text.splitlines() if line.startswith("training"))
    shown = [float(part.rstrip("%")) for part in line.split()[1:]]
    assert shown[0] == 1.5
    assert shown[1:] == sorted(shown[1:], reverse=True)
    assert "disturbed 3 of 16 trials" in text


def test_noise_is_that_of_pairs():
    def trial(stack, number, speed):
        metrics = {"train.tokens_per_s": Summary(median=speed, unit="tokens/s")}
        return make_record(stack, number, metrics=metrics)

    ratios = [0.01, -0.01, 0.03, -0.03]
    pairs = [(trial("a", n, n * 100.0), trial("b", n, n * 100.0 * math.exp(r))) for n, r in enumerate(ratios, 1)]
    records = [record for pair in pairs for record in pair]
    assert paired_noise(records, "train.tokens_per_s") == pytest.approx(math.sqrt(0.002 / 3))
    assert paired_noise(records, "infer.prefill_tokens_per_s") is None
    assert paired_noise(records[:4], "train.tokens_per_s") is None


def test_figures_of_the_processor(monkeypatch):
    monkeypatch.setattr(calibration, "_SIZES", {"cpu": (64, 128)})
    monkeypatch.setattr(calibration, "_SECONDS", 0.01)
    monkeypatch.setattr(calibration, "_COPY_BYTES", {"cpu": 2**22})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = calibration.measure([1])
    assert set(found["matmul_flops_per_s"]) == {"cpu float32 1", "cpu bfloat16 1"}
    assert all(rate > 0 for rate in (*found["matmul_flops_per_s"].values(), *found["copy_bytes_per_s"].values()))
    assert 0 < found["timer"]["cost_s"] < found["timer"]["resolution_s"] * 1000


def test_the_rate_is_operations_over_time(monkeypatch):
    monkeypatch.setattr(calibration, "_fastest", lambda action, device: 0.5)
    monkeypatch.setattr(calibration, "_SIZES", {"cpu": (100, 200)})
    # a product of half a second: the next size would take eight times as long, and is not begun
    assert calibration.matmul_peak(torch.device("cpu"), torch.float32) == 2 * 100**3 / 0.5
