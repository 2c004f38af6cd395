"""Which learning rates a sweep tries, which it chooses, and what it writes."""

import math

import pytest

from effbench.launch.tune import CANDIDATES, best_of, beyond
from effbench.plan.suite import read_suite
from effbench.plan.tuned import write_tuned

SUITE = """# what this suite is for
name = "s"
baseline = "full"
models = ["tiny-llama"]   # the shipped one
workloads = ["docs"]

[stacks]
full = []                 # untouched
"lora-8" = [              # rank 8
    { technique = "lora", rank = 8 },
]
inline = { use = ["lora"], lr = 1e-4 }  # was guessed

[stacks.own]
# a table of its own
use = ["lora"]

[[claims]]
source = "a"
says = "b"
stack = "own"
metric = "parameters.trainable"
relation = "value below"
value = 1
"""
EVIDENCE = {
    "metric": "bits_per_byte", "split": "validation", "lr": [1e-3, 3e-3], "scores": [2.5, math.nan], "seeds": [0], "steps": 4,
    "documents": 2, "model": "tiny-llama", "workload": "docs", "seq_len": 32, "batch_size": 2,
}  # fmt: skip


def grid(best, metric="bits_per_byte"):
    """Scores that are best at one learning rate."""
    sign = -1 if metric == "top1_accuracy" else 1
    return {lr: sign * abs(math.log(lr / best)) for lr in CANDIDATES}


@pytest.mark.parametrize("metric", ["bits_per_byte", "top1_accuracy"])
def test_the_best_is_lowest_or_highest_as_the_metric_says(metric):
    assert best_of(grid(1e-3, metric), metric) == 1e-3


def test_what_diverged_is_never_the_best():
    assert best_of({1e-3: 2.0, 1e-2: math.nan}, "bits_per_byte") == 1e-3
    assert best_of({1e-3: math.nan}, "bits_per_byte") is None


def test_a_sweep_goes_on_beyond_an_end_that_is_best():
    assert beyond(grid(1e-3), "bits_per_byte") == []
    assert beyond(grid(1e-2), "bits_per_byte") == [3e-2]
    assert beyond(grid(1e-2) | {3e-2: -1.0}, "bits_per_byte") == [1e-1]
    assert beyond(grid(1e-4), "bits_per_byte") == [3e-5]
    assert beyond(grid(1e-4) | {3e-5: -1.0}, "bits_per_byte") == [1e-5]
    assert beyond(dict.fromkeys(CANDIDATES, math.nan), "bits_per_byte") == [3e-5]


def test_writing_keeps_comments_and_order_and_gives_a_suite_with_the_evidence(tmp_path):
    file = tmp_path / "s.toml"
    file.write_text(SUITE)
    for stack in ("full", "lora-8", "inline", "own"):
        write_tuned(file, stack, 3e-3, EVIDENCE)
        write_tuned(file, stack, 1e-3, EVIDENCE)  # the second time round it is a table already
    text = file.read_text()
    assert [line for line in SUITE.splitlines() if line.startswith("#")] == [t for t in text.splitlines() if t.startswith("#")]
    comments = ("# the shipped one", "# untouched", "# rank 8", "# was guessed", "# a table of its own")
    places = [text.index(comment) for comment in comments]
    assert places == sorted(places)
    assert all(text.count(comment) == 1 for comment in comments)
    suite, before = read_suite(file), None
    (tmp_path / "before.toml").write_text(SUITE)
    before = read_suite(tmp_path / "before.toml")
    assert {name: stack.use for name, stack in suite.stacks.items()} == {n: s.use for n, s in before.stacks.items()}
    assert {stack.lr for stack in suite.stacks.values()} == {1e-3}
    assert suite.claims == before.claims
    assert set(suite.tuning) == {"full", "lora-8", "inline", "own"}
    assert suite.tuning["own"].lr == [1e-3, 3e-3]
    assert math.isnan(suite.tuning["own"].scores[1])


def test_evidence_for_a_stack_that_is_not_there_is_a_mistake(tmp_path):
    from effbench.plugin import InputError

    (tmp_path / "s.toml").write_text(SUITE)
    write_tuned(tmp_path / "s.toml", "own", 1e-3, EVIDENCE)
    (tmp_path / "s.toml").write_text((tmp_path / "s.toml").read_text().replace("[tuning.own]", "[tuning.owm]"))
    with pytest.raises(InputError, match="owm"):
        read_suite(tmp_path / "s.toml")
