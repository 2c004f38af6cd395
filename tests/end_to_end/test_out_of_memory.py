"""A trial that really runs out of memory: the larger cell is not launched, in this run and the next."""

import json

from tests.end_to_end.conftest import effbench

GREEDY = '''
from typing import ClassVar

from effbench.plugin import Technique, hookimpl


class Greedy(Technique):
    """Holds more than there is from a length on, and does not say so before."""

    name: ClassVar = "greedy"
    family: ClassVar = "other"

    def apply(self, model, ctx):
        hoard = []
        while ctx.cell.seq_len >= 32:
            hoard.append(bytearray(b"x") * 2**26)
        return model


@hookimpl
def register_techniques(register):
    register(Greedy)
'''


def trials(folder):
    found = [json.loads(file.read_text()) for file in folder.rglob("small-*.json")]
    return {(r["cell"]["stack"], r["cell"]["seq_len"], r["round"]): r for r in found}


def test_the_larger_cell_is_not_launched(suite, tmp_path):
    file = suite('greedy = ["greedy"]\n[ranking]\nby = "train.tokens_per_s"\n')
    text = file.read_text().replace("timeout_s = 60", "timeout_s = 60\nmemory_gb = 1.0")
    # The seed shuffles a round: with this one (0, as no other is given) 32 comes before 64.
    file.write_text(text.replace("seq_len = [32]", "seq_len = [16, 32, 64]"))
    (tmp_path / "greedy.py").write_text(GREEDY)
    command = ("run", file, "--plugin", "greedy.py", "--results", "out")
    done = effbench(*command, cwd=tmp_path, check=1)
    found = trials(tmp_path / "out")
    assert {key: r["status"] for key, r in found.items() if key[0] == "greedy"} == {
        ("greedy", 16, 1): "ok",
        ("greedy", 32, 1): "oom",
        ("greedy", 64, 1): "skipped",
    }
    assert "passed the limit of 1.00 GiB" in found["greedy", 32, 1]["error"]
    reason = "a smaller cell, seq_len 32, ran out of memory"
    assert found["greedy", 64, 1]["error"] == reason
    assert f"greedy on path:tiny, docs, 2 × 64 tokens: skipped: {reason}" in done.stdout
    assert "1 oom, 1 skipped" in (next((tmp_path / "out").rglob("LEADERBOARD.md"))).read_text()
    assert "1 trials did not end well" in done.stderr
    again = effbench(*command, "--rounds", 2, cwd=tmp_path, check=1)
    assert "6 to run, 2 of them not launched: memory ran out before" in again.stdout
    assert trials(tmp_path / "out")["greedy", 32, 2]["error"] == "it ran out of memory before"
    assert "0 to run" in effbench(*command, "--rounds", 2, cwd=tmp_path, check=1).stdout
