"""The setting of malloc in processes of its own, for it cannot be taken back."""

import json
import platform
import subprocess
import sys

import pytest

from effbench.worker.allocator import set_allocator

GLIBC = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc's malloc")
MB = 2**20
PAGES = 64 * MB // 4096
PROGRAM = """
import json, resource, sys
from effbench_plugins.meters.memory import _resident_peak
from effbench.worker.allocator import set_allocator

def fill(megabytes):
    return b"x" * (megabytes * 2**20)

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    fill(64)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def peak(megabytes):
    end = _resident_peak(0)
    fill(megabytes)
    return end()

set_allocator(sys.argv[1])
print(json.dumps({"faults": [faults() for _ in range(3)], "peaks": [peak(size) for size in (64, 0, 32)]}))
"""


def measure(allocator):
    done = subprocess.run([sys.executable, "-c", PROGRAM, allocator], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@GLIBC
def test_what_is_kept_is_not_faulted_in_again():
    assert min(measure("default")["faults"]) > PAGES / 2
    first, *later = measure("keep")["faults"]
    assert first > PAGES / 2
    assert max(later) < PAGES / 100


HOLES = """
import sys
from effbench.worker.allocator import set_allocator

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

set_allocator(sys.argv[1])
del (large := [b"x" * 24 * 2**20])[:]  # under the default the threshold is 24 MB from here on
before = resident()
blocks = [b"x" * 2**20 for _ in range(64)]
del blocks[:-1]  # the last one stays at the end of the heap
print(resident() - before)
"""


@GLIBC
def test_what_is_released_leaves_no_hole():
    def held(allocator):
        return int(subprocess.run([sys.executable, "-c", HOLES, allocator], capture_output=True, text=True, check=True).stdout)

    assert held("default") > 32 * MB
    assert held("release") < 4 * MB


@GLIBC
@pytest.mark.parametrize("allocator", ["default", "keep", "release"])
def test_a_peak_is_that_of_its_phase_under_either(allocator):
    large, none, small = measure(allocator)["peaks"]
    assert large == pytest.approx(64 * MB, abs=4 * MB)
    assert none == pytest.approx(0, abs=4 * MB)
    assert small == pytest.approx(32 * MB, abs=4 * MB)


def test_a_malloc_that_refuses_ends_the_trial(monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda _: type("Libc", (), {"mallopt": staticmethod(lambda *_: 0)}))
    set_allocator("default")
    with pytest.raises(RuntimeError, match='allocator = "keep"'):
        set_allocator("keep")
