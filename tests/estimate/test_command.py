"""`effbench estimate` from the command line."""

import json

import pytest

from tests.end_to_end.conftest import effbench

SMALL = ("estimate", "tiny-decoder:2x64x2", "--seq-len", "32", "--dtype", "float32")


def test_stacks_side_by_side(tmp_path):
    lora = '[{technique="lora", rank=2}, "ddp"]'
    done = effbench(*SMALL, "--batch-size", "4", "--stack", "ddp", "--stack", lora, "--world-size", "2", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    plain, with_lora = map(json.loads, done.stdout.splitlines())
    assert (plain["stack"], with_lora["stack"]) == ("ddp", "lora(rank=2)+ddp")
    assert with_lora["ranks"][0]["trainable"] < plain["ranks"][0]["trainable"]
    assert plain["ranks"][0]["train"]["work"]["collectives"][0]["kind"] == "all-reduce"


def test_the_table_and_what_has_no_estimate(tmp_path):
    done = effbench(*SMALL, "--stack", "[]", "--stack", "head_pruning", cwd=tmp_path)
    assert done.returncode == 1
    assert "optimizer state" in done.stdout
    assert "no estimate: head_pruning: head_pruning: needs the content of tensors" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["estimate"], "nothing to estimate: name a model"),
        (["estimate", "llama-2-70"], "unknown shape 'llama-2-70': did you mean 'llama-2-70b'"),
        (["estimate", "gpt2", "--stack", "lroa"], "unknown technique 'lroa': did you mean 'lora'"),
        (["estimate", "gpt2", "--stack", "[lora]"], "--stack [lora]: not a TOML list of techniques"),
        (["estimate", "gpt2", "--stack", "[1]"], "--stack [1]: a technique is a name, or a table that has one"),
        (["estimate", "gpt2", "--dtype", "int3"], "dtype"),
    ],
)
def test_mistakes_are_one_line(arguments, says, tmp_path):
    done = effbench(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
