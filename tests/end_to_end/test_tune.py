"""`effbench tune` on a tiny suite: what is chosen, what is written, and what is never looked at."""

import math

import pytest

from effbench.plan.suite import read_suite
from tests.end_to_end.conftest import effbench

WATCHER = """
from effbench.plugin import hookimpl
from effbench.plugin.text_workload import TextWorkload
from effbench.reference.texts import Document, Splits

class Untouchable(list):
    "A test split that only its hash may read: it starts the worker, and nothing else."
    def __iter__(self):
        import inspect
        if not any(frame.function == "data_hash" for frame in inspect.stack()):
            raise AssertionError("the test split was read")
        return super().__iter__()

class Watched(TextWorkload):
    "Text whose test split is watched."
    name = "watched"
    def read(self):
        text = "one two three four five. " * 40
        return Splits([Document("a", text)], [Document("b", text[5:])], Untouchable([Document("c", text[9:])]))

@hookimpl
def register_workloads(register):
    register(Watched)
"""


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, tiny_model):
    from tests.end_to_end.conftest import SUITE

    folder = tmp_path_factory.mktemp("tune")
    (folder / "watched.py").write_text(WATCHER)
    stacks = (
        'lora = [{ technique = "lora", rank = 2 }]  # small\nlate = { use = [{ technique = "int8_dynamic", at = "apply" }] }\n'
    )
    text = SUITE.format(model=tiny_model).replace('"docs"', '"watched"') + stacks
    (folder / "small.toml").write_text(text)
    rates = [part for lr in ("1e-6", "1e-2", "1e9") for part in ("--lr", lr)]
    return folder, text, effbench("tune", "small.toml", *rates, "--plugin", "watched.py", cwd=folder, check=0)


def test_every_stack_that_trains_gets_the_rate_that_is_best_on_validation(tuned):
    folder, _, done = tuned
    suite = read_suite(folder / "small.toml")
    assert suite.stacks["full"].lr == suite.stacks["lora"].lr == 1e-2
    assert suite.stacks["late"].lr is None
    assert "skipped: late" in done.stderr
    for name in ("full", "lora"):
        evidence = suite.tuning[name]
        assert evidence.lr == [1e-6, 1e-2, 1e9]
        assert min(s for s in evidence.scores if not math.isnan(s)) == evidence.scores[1]
        assert (evidence.split, evidence.seeds, evidence.steps, evidence.documents) == ("validation", [0], 4, 2)


def test_the_suite_is_otherwise_as_it_was_and_no_record_is_left(tuned):
    folder, before, _ = tuned
    after = (folder / "small.toml").read_text()
    kept = [line for line in before.splitlines() if not line.startswith(("full", "lora"))]
    assert [line for line in after.splitlines() if line in kept][: len(kept)] == kept
    assert "# small" in after
    assert sorted(file.name for file in folder.iterdir() if "cache" not in file.name) == ["small.toml", "watched.py"]


def test_dry_run_leaves_the_suite_alone_and_bad_rates_are_one_line(tmp_path, suite):
    file = suite()
    before = file.read_text()
    done = effbench("tune", file, "--lr", "1e-3", "--dry-run", cwd=tmp_path, check=0)
    assert file.read_text() == before
    assert "<- best" in done.stdout
    assert "above 0" in effbench("tune", file, "--lr", "0", cwd=tmp_path, check=2).stderr
