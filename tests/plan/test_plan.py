import pytest

from effbench.plan.estimate import estimate
from effbench.plan.plan import plan, techniques_of
from effbench.plan.suite import Suite
from effbench.plugin import InputError

EXTRA = '''
from typing import ClassVar
from effbench.plugin import Technique, hookimpl


class Needy(Technique):
    """Needs what is not there."""

    name: ClassVar = "needy"
    family: ClassVar = "other"
    requires: ClassVar = ("no-such-library",)


class One(Technique):
    """Sets something."""

    name: ClassVar = "one"
    family: ClassVar = "other"
    sets: ClassVar = ("thing",)


class Other(One):
    """Sets it too."""

    name: ClassVar = "other"


class Spread(Technique):
    """Uses ranks."""

    name: ClassVar = "spread"
    family: ClassVar = "parallelism"
    dimension: ClassVar = "dp"


@hookimpl
def register_techniques(register):
    for technique in (Needy, One, Other, Spread):
        register(technique)
'''


def make(model, stacks, **changes):
    content = {"name": "s", "baseline": "full", "models": [model], "workloads": ["docs"], "stacks": {"full": []} | stacks}
    return Suite.model_validate(content | changes)


def test_stacks_times_axes_and_option_axes_only_where_used(catalog, model):
    axes = {"seq_len": [16, 32], "batch_size": [1, 2], "lora.rank": [2, 4]}
    planned = plan(make(model, {"lora": ["lora"], "int8": ["int8_dynamic"]}, axes=axes), catalog)
    count = {name: sum(c.stack == name for c in planned.cells) for name in ("full", "lora", "int8")}
    assert count == {"full": 4, "lora": 8, "int8": 4}
    assert len({cell.id for cell in planned.cells}) == 16
    assert {t.rank for c in planned.cells if c.stack == "lora" for t in techniques_of(c, catalog)} == {2, 4}


def test_ids_are_stable_and_carry_no_path(catalog, model):
    first, second = (plan(make(model, {}), catalog).cells[0] for _ in range(2))
    assert first.id == second.id
    assert first.model == "config:tiny.json"
    assert first.id.startswith("s-full-config-tiny-json-docs-s128-b1-")


@pytest.mark.parametrize(
    ("stack", "axes", "reason"),
    [
        (["needy"], {}, "needs no-such-library: pip install no-such-library"),
        (["one", "other"], {}, "one and other both set thing: a stack can have one of them"),
        (["spread"], {"world_size": [2]}, "batch_size 1 cannot be split over 2 data-parallel ranks"),
        (["one"], {"seq_len": [512]}, "seq_len 512 is beyond the model's context of 256"),
    ],
)
def test_impossible_cells_are_skipped_with_the_reason(catalog, model, stack, axes, reason):
    planned = plan(make(model, {"x": stack}, axes=axes), catalog)
    assert [skip.reason for skip in planned.skips if skip.cell.stack == "x"] == [reason]


def test_a_parallel_technique_claims_the_ranks(catalog, model):
    planned = plan(make(model, {"x": ["spread"]}, axes={"world_size": [1, 2], "batch_size": [4]}), catalog)
    assert sorted((c.world_size, c.batch_size, c.data_ranks) for c in planned.cells if c.stack == "x") == [(1, 4, 1), (2, 4, 2)]
    twice = plan(make(model, {"x": ["spread", "spread"]}, axes={"world_size": [2]}), catalog)
    assert "spread and spread both set the mesh dimension dp" in twice.skips[-1].reason


def test_a_stack_without_ranks_exists_on_one_alone_and_the_plan_says_so(catalog, model):
    planned = plan(make(model, {"x": ["spread"]}, axes={"world_size": [2, 4], "batch_size": [4]}), catalog)
    assert [(c.stack, c.world_size) for c in planned.cells] == [("full", 1), ("x", 2), ("x", 4)]
    assert planned.skips == []
    assert planned.notes == ["world_size 2, 4: nothing in full uses several ranks, measured on one; add ddp"]


def test_under_weak_scaling_the_batch_grows_with_the_ranks(catalog, model):
    suite = make(model, {"x": ["spread"]}, axes={"world_size": [1, 2], "batch_size": [3]})
    planned = plan(suite.model_copy(update={"scaling": "weak"}), catalog)
    assert [(c.world_size, c.batch_size) for c in planned.cells if c.stack == "x"] == [(1, 3), (2, 6)]


def test_a_workload_may_have_models_lengths_and_rounds_of_its_own(catalog, model):
    own = {"docstrings": {"models": ["tiny-llama"], "rounds": 1, "steps": 7, "seq_len": [32]}}
    changes = {"models": ["tiny-llama", model], "workloads": ["docs", "docstrings"], "axes": {"seq_len": [16, 64]}}
    planned = plan(make(model, {}, **changes, for_workload=own), catalog)
    found = [(c.model, c.workload, c.seq_len, c.steps, planned.rounds(c, 3)) for c in planned.cells]
    docs = [(name, "docs", length, 60, 3) for name in ("tiny-llama", "config:tiny.json") for length in (16, 64)]
    assert sorted(found) == sorted([*docs, ("tiny-llama", "docstrings", 32, 7, 1)])
    assert estimate(planned, 3, {c.id: 60.0 for c in planned.cells}).minutes == 3 * 4 + 1


def test_a_phase_that_cannot_be_is_skipped_and_the_rest_measured(catalog, model):
    planned = plan(make(model, {"x": [{"technique": "int8_dynamic", "at": "apply"}]}), catalog)
    [cell] = [c for c in planned.cells if c.stack == "x"]
    assert "cannot be trained" in planned.phase_skips[cell.id]["train"]
    assert "infer" not in planned.phase_skips[cell.id]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stacks": {"full": [], "x": ["lroa"]}}, "unknown technique 'lroa': did you mean 'lora'"),
        ({"models": ["tiny-lama"]}, "unknown model 'tiny-lama': did you mean 'tiny-llama'"),
        ({"workloads": ["doc"]}, "unknown workload 'doc': did you mean 'docs'"),
        ({"ranking": {"by": "train.token_per_s"}}, "unknown metric 'train.token_per_s': did you mean 'train.tokens_per_s'"),
        ({"columns": ["train.final_los"]}, "unknown metric 'train.final_los': did you mean 'train.final_loss'"),
        ({"axes": {"lora.rnk": [1]}}, "unknown option of technique 'lora' 'rnk': did you mean 'rank'"),
        (
            {"stacks": {"full": [], "x": [{"technique": "lora", "rank": 0}]}},
            "option rank = 0: input should be greater than or equal",
        ),
        ({"stacks": {"full": [], "x": [{"technique": "lora", "rnk": 4}]}}, "unknown option 'rnk': did you mean 'rank'"),
    ],
)
def test_what_does_not_exist_is_refused_with_the_nearest_name(catalog, model, changes, words):
    with pytest.raises(InputError) as caught:
        plan(make(model, changes.pop("stacks", {}), **changes), catalog)
    assert words in str(caught.value)


def test_choosing_stacks_keeps_the_baseline(catalog, model):
    planned = plan(make(model, {"a": ["lora"], "b": ["one"]}), catalog, ["b"])
    assert {c.stack for c in planned.cells} == {"full", "b"}
    with pytest.raises(InputError, match="unknown stack"):
        plan(make(model, {}), catalog, ["c"])


def test_the_estimate_grows_with_the_work_and_believes_what_was_seen(catalog, model):
    small, large = (plan(make(model, {}, axes={"seq_len": [n]}), catalog) for n in (16, 128))
    assert estimate(small, 1, {}).minutes < estimate(large, 1, {}).minutes
    assert estimate(small, 1, {}).memory_gb < estimate(large, 1, {}).memory_gb
    assert estimate(small, 3, {small.cells[0].id: 60.0}).minutes == 3.0
