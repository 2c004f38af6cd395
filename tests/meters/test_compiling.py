import sys
from types import SimpleNamespace

import pytest
import torch
from effbench_plugins.meters.compiling import Compiling

from effbench.plugin import Observation
from tests.records import make_cell


def end(meter, phase):
    return {name: summary.median for name, summary in meter.end(Observation(make_cell(), phase)).items()}


@pytest.fixture
def spent(monkeypatch):
    seconds = {"total_wall_time": 0.0}
    monkeypatch.setitem(sys.modules, "torch._dynamo.utils", SimpleNamespace(calculate_time_spent=lambda: seconds))
    return seconds


def test_each_phase_has_what_was_compiled_since_the_one_before(spent):
    meter = Compiling()
    spent["total_wall_time"] = 3.0
    assert end(meter, "load") == {}
    assert end(meter, "train") == {"train.compile_s": 3.0}
    spent["total_wall_time"] = 5.0
    assert end(meter, "convert") == {}
    assert end(meter, "infer") == {"infer.compile_s": 2.0}


def test_a_phase_in_which_nothing_was_compiled_has_no_figure(spent):
    assert end(Compiling(), "train") == {}


def test_without_dynamo_nothing_was_compiled(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch._dynamo.utils", raising=False)
    assert end(Compiling(), "infer") == {}
    assert "torch._dynamo.utils" not in sys.modules  # importing it takes seconds


def test_a_real_compilation_is_seen():
    meter = Compiling()
    meter.end(Observation(make_cell(), "train"))
    torch.compile(lambda x: x.sin() + 1, backend="eager")(torch.ones(3))
    assert end(meter, "infer")["infer.compile_s"] > 0
