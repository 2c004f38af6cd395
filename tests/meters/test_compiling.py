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
    spent["total_wall_time"] = 50.0  # before the trial
    meter = Compiling()
    meter.begin(Observation(make_cell(), "load"))
    spent["total_wall_time"] = 53.0
    assert end(meter, "load") == {}
    assert end(meter, "train") == {"train.compile_s": 3.0}
    meter.begin(Observation(make_cell(), "convert"))
    spent["total_wall_time"] = 55.0
    assert end(meter, "convert") == {}
    assert end(meter, "infer") == {"infer.compile_s": 2.0}


def test_a_phase_in_which_nothing_was_compiled_has_no_figure(spent):
    meter = Compiling()
    meter.begin(Observation(make_cell(), "train"))
    assert end(meter, "train") == {}


def test_without_dynamo_nothing_was_compiled(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch._dynamo.utils", raising=False)
    meter = Compiling()
    meter.begin(Observation(make_cell(), "infer"))
    assert end(meter, "infer") == {}
    assert "torch._dynamo.utils" not in sys.modules  # importing it takes seconds


def test_a_real_compilation_is_seen():
    meter = Compiling()
    meter.begin(Observation(make_cell(), "infer"))
    torch.compile(lambda x: x.sin() + 1, backend="eager")(torch.ones(3))
    assert end(meter, "infer")["infer.compile_s"] > 0
