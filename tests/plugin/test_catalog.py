from typing import ClassVar

import pytest
from pydantic import Field, model_validator

from effbench.plugin import InputError, Meter, Metric, ModelSource, Technique, Workload
from effbench.plugin.catalog import Catalog
from effbench.plugin.discovery import discover


class Fine(Technique):
    """Has options."""

    name: ClassVar = "fine"
    family: ClassVar = "other"

    rank: int = Field(default=16, ge=1)
    at: str = "apply"

    @model_validator(mode="after")
    def _together(self):
        if self.rank > 99 and self.at == "infer":
            raise ValueError("rank above 99 needs\nat = 'apply'")
        return self


class Stopwatch(Meter):
    """Counts."""

    name: ClassVar = "stopwatch"
    metrics: ClassVar = (Metric("a.b_s", "s", "lower", "one"), Metric("a.c_s", "s", "lower", "two"))


@pytest.fixture
def catalog():
    catalog = Catalog()
    catalog.techniques.add(Fine, "mine (mine.py)")
    catalog.meters.add(Stopwatch, "mine (mine.py)")
    return catalog


def test_a_registry_knows_names_classes_and_plugins(catalog):
    assert catalog.techniques.names() == ["fine"]
    assert list(catalog.techniques) == [Fine]
    assert catalog.techniques.plugin_of("fine") == "mine (mine.py)"
    with pytest.raises(InputError, match="unknown technique 'fin': did you mean 'fine'"):
        catalog.techniques.get("fin")
    with pytest.raises(InputError, match=r"technique 'fine' is registered by both mine \(mine.py\) and other: rename one"):
        catalog.techniques.add(Fine, "other")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "technique 'fine': option rank = 0: input should be greater than or equal to 1"),
        ({"rank": "x"}, "technique 'fine': option rank = 'x': input should be a valid integer"),
        ({"rnk": 4}, "technique 'fine': unknown option 'rnk': did you mean 'rank'?"),
        ({"rank": 100, "at": "infer"}, "technique 'fine': rank above 99 needs at = 'apply'"),
    ],
)
def test_a_wrong_option_is_one_line(catalog, options, message):
    with pytest.raises(InputError) as caught:
        catalog.technique("fine", options)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_options_are_typed(catalog):
    assert catalog.technique("fine", {"rank": 4}).rank == 4


def test_metrics_of_all_meters(catalog):
    assert {name: metric.definition for name, metric in catalog.metrics().items()} == {"a.b_s": "one", "a.c_s": "two"}


class Source(ModelSource):
    name: ClassVar = "src"
    facts = weights_hash = load = tokenizer = None


class Work(Workload):
    name: ClassVar = "work"
    data_hash = training_batches = prompts = quality = None


def test_a_reference_is_a_name_or_a_name_and_an_argument(catalog):
    catalog.models.add(Source, "p")
    catalog.workloads.add(Work, "p")
    assert catalog.model("src").argument is None
    assert catalog.model("src:a:b", trust_remote_code=True).argument == "a:b"
    assert catalog.model("src", trust_remote_code=True).trust_remote_code
    assert catalog.workload("work").argument is None
    assert catalog.workload("work:a").argument == "a"


PACKAGED = '''
"""A technique in a folder."""
from typing import ClassVar
from effbench.plugin import Technique, hookimpl


class Packaged(Technique):
    """In a folder."""

    name: ClassVar = "packaged"
    family: ClassVar = "other"


@hookimpl
def register_techniques(register):
    register(Packaged)
'''


def test_the_hash_covers_every_file_of_a_folder_and_only_the_file_of_a_file(tmp_path):
    folder = tmp_path / "packaged"
    folder.mkdir()
    (folder / "__init__.py").write_text(PACKAGED)
    (folder / "kernel.py").write_text("x = 1\n")
    before = discover([folder]).technique_hash("packaged")
    (folder / "kernel.py").write_text("x = 2\n")
    assert discover([folder]).technique_hash("packaged") != before

    single = tmp_path / "single.py"
    single.write_text(PACKAGED)
    before = discover([single]).technique_hash("packaged")
    (tmp_path / "neighbour.py").write_text("x = 1\n")
    assert discover([single]).technique_hash("packaged") == before
    assert len(before) == 16


def test_every_bundled_technique_has_a_hash():
    catalog = discover()
    assert all(len(catalog.technique_hash(name)) == 16 for name in catalog.techniques.names())
