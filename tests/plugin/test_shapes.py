"""Models `shape:NAME`: the sizes that were published, without their weights."""

import json

import pytest
from effbench_plugins import shapes

from effbench.plugin import InputError, LoadRequest
from effbench.plugin.discovery import discover
from effbench.worker.estimate.fakes import fake_tensors

CATALOG = discover()


@pytest.mark.parametrize("name", shapes._FILES)
def test_a_shape_has_as_many_parameters_as_were_published(name):
    source = CATALOG.model(f"shape:{name}")
    with fake_tensors():
        model = source.load(LoadRequest(dtype="bfloat16", weights=False), 0)
        found = sum(parameter.numel() for parameter in model.parameters())
    said = json.loads(shapes._FILES[name].read_text())
    assert said["source"]
    assert found == pytest.approx(said["published_parameters"], rel=0.01)


def test_an_unknown_shape_has_a_near_name():
    with pytest.raises(InputError, match="did you mean 'llama-2-70b'"):
        CATALOG.model("shape:llama2-70b").facts()


def test_a_small_one_is_a_model_like_any_other():
    first, second = (CATALOG.model("shape:gpt2").load(LoadRequest(dtype="float32"), seed) for seed in (1, 2))
    assert all(a.equal(b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not CATALOG.model("shape:gpt2").trained
