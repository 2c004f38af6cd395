"""What a claim may say, and how a mistake in it is told."""

import pytest

from effbench.plan.claim import Claim, Relation
from effbench.plan.suite import read_suite
from effbench.plugin import InputError

SUITE = """name = "s"
baseline = "full"
models = ["m"]
workloads = ["w"]
[axes]
"prune.sparsity" = [0.5, 0.9]
[stacks]
full = []
lora = ["lora"]
prune = ["prune"]
[[claims]]
source = "A 2020"
says = "b"
stack = "lora"
metric = "train.step_s"
relation = "ratio to baseline below"
value = 1.0
"""


def read(tmp_path, old="", new=""):
    assert old in SUITE
    (tmp_path / "s.toml").write_text(SUITE.replace(old, new) if old else SUITE)
    [claim] = read_suite(tmp_path / "s.toml").claims
    return claim


@pytest.mark.parametrize(
    ("relation", "value", "parts"),
    [
        ("ratio to baseline below", 1, Relation("ratio", "below", "baseline")),
        ("ratio to full above", 1, Relation("ratio", "above", "full")),
        ("ratio to a b equals", 1, Relation("ratio", "equals", "a b")),
        ("value equals", 0, Relation("value", "equals")),
        ("exponent above", 2, Relation("exponent", "above")),
        ("better than full", None, Relation("better", "", "full")),
        ("monotone along seq_len", None, Relation("along", "monotone", "seq_len")),
        ("rises along prune.sparsity", None, Relation("along", "rises", "prune.sparsity")),
        ("falls along batch_size", None, Relation("along", "falls", "batch_size")),
    ],
)
def test_relations(relation, value, parts):
    claim = Claim(source="A 2020", says="b", stack="lora", metric="train.step_s", relation=relation, value=value)
    assert claim.parts == parts
    assert claim.parts.stack == (parts.subject if parts.subject in ("full", "a b") else None)


def test_a_score_may_be_written_by_its_own_name(tmp_path):
    assert read(tmp_path, '"train.step_s"', '"accuracy"').metric == "quality.accuracy"
    assert read(tmp_path, '"train.step_s"', '"quality.accuracy"').metric == "quality.accuracy"
    assert read(tmp_path).metric == "train.step_s"


def test_where_and_within(tmp_path):
    where = '{ seq_len = 64, world_size = 2, model = "m", workload = "w", dtype = "float32", "prune.sparsity" = 0.5 }'
    claim = read(tmp_path, 'below"\nvalue = 1.0', f'equals"\nvalue = 1.0\nwithin = 0.1\nwhere = {where}')
    assert (claim.within, claim.where["seq_len"], claim.options) == (0.1, 64, {"prune.sparsity": 0.5})
    assert claim.option_axes == {"prune.sparsity"}
    assert read(tmp_path).where == {}


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("value = 1.0", "value = 1.0\nwhere = { seq_lenn = 1 }", ["s.toml:18", "where.seq_lenn", "did you mean 'seq_len'"]),
        ("value = 1.0", "value = 1.0\nwhere = { rounds = 1 }", ["known: batch_size, dtype, model", "technique.option"]),
        ("value = 1.0", "value = 1.0\nwhere = { seq_len = true }", ["where.seq_len", "True", "whole number from 1"]),
        ("value = 1.0", "value = 1.0\nwhere = { model = 1 }", ["where.model", "allowed is a name"]),
        ("value = 1.0", 'value = 1.0\nwhere = { "prune.sparsity" = 2020-01-01 }', ["where.prune.sparsity", "a number, a name"]),
        ("value = 1.0", 'value = 1.0\nwhere = { "prune.sparsity" = nan }', ["where.prune.sparsity", "a number, a name"]),
        ("value = 1.0", "value = inf", ["claims.0.value", "finite"]),
        ("value = 1.0", 'value = 1.0\nwhere = { "prune.share" = 1 }', ["s.toml:18", "option axis", "'prune.sparsity'"]),
        ("value = 1.0", "value = 1.0\nwithin = 0.1", ["claims.0.within", "is not used", "'equals'"]),
        ("value = 1.0", "value = 1.0\nwithin = 0", ["within", "greater than 0"]),
        ("value = 1.0", "valu = 1.0", ["unknown key 'claims.0.valu'", "claims.0.value"]),
        ("value = 1.0", "", ["claims.0.value: is missing"]),
        ('"ratio to baseline below"', '"better than full"', ["claims.0.value", "is not used"]),
        ('to baseline below"', 'to ful below"', ["s.toml:16", "unknown stack 'ful'", "did you mean 'full'"]),
        ('"ratio to baseline below"\nvalue = 1.0', '"rises along seq_lem"', ["unknown axis 'seq_lem'", "'seq_len'"]),
        ('"ratio to baseline below"\nvalue = 1.0', '"rises along a.b"', ["s.toml:16", "option axis", "prune.sparsity"]),
        ('"ratio to baseline below"', '"ratio below"', ["relation = 'ratio below'", "'ratio to STACK below|above|equals'"]),
    ],
)
def test_a_mistake_is_one_line_that_says_what_is_allowed(tmp_path, old, new, words):
    with pytest.raises(InputError) as caught:
        read(tmp_path, old, new)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)
