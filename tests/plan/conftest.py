import json

import pytest

from effbench.plugin.discovery import discover
from tests.end_to_end.conftest import TINY


@pytest.fixture(scope="module")
def catalog(request, tmp_path_factory):
    """All there is, and the plugin that the test module has as text."""
    file = tmp_path_factory.mktemp("plugins") / "extra.py"
    file.write_text(request.module.EXTRA)
    found = discover([file])
    assert next(plugin.problem for plugin in found.plugins if plugin.name == "extra") is None
    return found


@pytest.fixture
def model(tmp_path):
    """The reference to a model of random weights."""
    file = tmp_path / "tiny.json"
    file.write_text(json.dumps(TINY))
    return f"config:{file}"
