"""Where a suite's mistake is said to be."""

import pytest

from effbench.plan.mistakes import line_of, split_key
from effbench.plan.suite import read_suite
from effbench.plugin import InputError

SUITE = """name = "s"
baseline = "full"
models = ["m"]
workloads = ["w"]

[training]
steps = 2

[stacks]
full = []
lora = { use = ["lora"], lr = 3e-3 }

[stacks.other]
use = ["lora"]
lr = 0.1

[[claims]]
source = "a"
says = "b"
stack = "lora"
metric = "train.step_s"
relation = "ratio to baseline below"
value = 1.0

[[claims]]
source = "a"
says = "b"
stack = "lora"
metric = "train.step_s"
relation = "better than full"
"""


def message(tmp_path, old="", new="", settings=None):
    assert old in SUITE
    file = tmp_path / "s.toml"
    file.write_text(SUITE.replace(old, new) if old else SUITE)
    with pytest.raises(InputError) as caught:
        read_suite(file, settings)
    return str(caught.value)


def test_the_suite_itself_is_good(tmp_path):
    file = tmp_path / "s.toml"
    file.write_text(SUITE)
    assert len(read_suite(file).claims) == 2


@pytest.mark.parametrize(
    ("old", "new", "start"),
    [
        ('baseline = "full"', 'baseline = "ful"', "s.toml:2: baseline: unknown stack 'ful': did you mean 'full'"),
        ("lr = 3e-3", "lr = 0", "s.toml:11: stacks.lora.lr = 0: "),
        ("lr = 0.1", "lr = 0", "s.toml:15: stacks.other.lr = 0: "),
        ("lr = 0.1", "lrr = 1", "s.toml:15: unknown key 'stacks.other.lrr': did you mean 'stacks.other.lr'"),
        ('"better than full"', '"better than ful"', "s.toml:30: claims.1.relation: unknown stack 'ful'"),
        ('"better than full"', '"is nicer"', "s.toml:30: claims.1.relation = 'is nicer': allowed: 'ratio to baseline"),
        ("value = 1.0", "", "s.toml:17: claims.0.value: is missing"),
    ],
)
def test_the_line_is_the_keys_own(tmp_path, old, new, start):
    assert message(tmp_path, old, new).startswith(start)


@pytest.mark.parametrize(
    ("key", "value", "start"),
    [
        ("training.steps", "0", "--set training.steps=0: training.steps = 0: "),
        ("axes.seq_len", "[true]", "--set axes.seq_len=[true]: axes.seq_len: [True]: allowed are whole numbers"),
        ("a b", "1", "s.toml: unknown key 'a b'"),
    ],
)
def test_what_set_got_wrong_is_not_blamed_on_the_file(tmp_path, key, value, start):
    assert message(tmp_path, settings={key: value}).startswith(start.replace("s.toml", f"--set {key}={value}"))


def test_every_mistake_is_reported(tmp_path):
    told = message(tmp_path, settings={"rounds": "0", "dtype": "int3"})
    assert "rounds = 0" in told
    assert "dtype = 'int3'" in told


def test_keys():
    assert split_key('axes."lora.rank"') == ["axes", "lora.rank"]
    assert split_key("a . b") == ["a", "b"]
    assert line_of("x = 1", ["y"]) is None
