"""Several ranks under real torchrun: global figures, and failures that end a trial on all ranks and harm no other."""

import os
import signal
import socket
import subprocess
import sys

import psutil
import pytest

from effbench.store.store import read_samples
from tests.end_to_end.conftest import SUITE, effbench, records

TWO = SUITE.replace("batch_size = [2]", "batch_size = [4]\nworld_size = [1, 2]").replace("timeout_s = 60", "timeout_s = 8")
BAD = '''
import os, time
from typing import ClassVar, Literal

from effbench.plugin import Technique, hookimpl


class BadRank(Technique):
    """Goes wrong on the last rank, in the middle of training, while the others wait for it."""

    name: ClassVar = "bad_rank"
    family: ClassVar = "other"
    how: Literal["abort", "raise", "hang", "memory"]

    def train(self, step, ctx):
        from dataclasses import replace

        update, calls = step.update, []

        def fail(current):
            update(current)
            calls.append(1)
            if len(calls) == 2 and ctx.rank == ctx.world_size - 1 > 0:
                self.go_wrong()

        return replace(step, update=fail)

    def go_wrong(self):
        if self.how == "abort":
            os.abort()
        if self.how == "raise":
            raise ValueError("the last rank's own words")
        if self.how == "hang":
            time.sleep(1000)
        hoard = []
        while True:
            hoard.append(bytearray(os.urandom(1 << 20)) * 32)


@hookimpl
def register_techniques(register):
    register(BadRank)
'''
DISTILLED = 'distilled = [{ technique = "distillation", teacher_steps = 3, hidden = 1.0 }, "ddp"]\n'
SHARDED = 'sharded = ["fsdp", { technique = "bad_rank", how = "abort" }]\n'
WAYS = ("abort", "raise", "hang", "memory")


@pytest.fixture(scope="module")
def outcome(tmp_path_factory, tiny_model):
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "bad.py").write_text(BAD)
    stacks = "".join(f'{way} = ["ddp", {{ technique = "bad_rank", how = "{way}" }}]\n' for way in WAYS)
    text = (
        TWO.format(model=tiny_model).replace("[limits]", "[limits]\nmemory_gb = 2.0")
        + 'ddp = ["ddp"]\n'
        + DISTILLED
        + SHARDED
        + stacks
    )
    (folder / "small.toml").write_text(text)
    done = effbench("run", "small.toml", "--plugin", "bad.py", "--results", "out", cwd=folder, check=1)
    by_size = {}
    for file in (folder / "out").rglob("small-*.json"):
        [record] = records(file.parent, file.name).values()
        samples = record.get("samples")
        by_size[record["cell"]["stack"], record["cell"]["world_size"]] = record
        record["steps"] = read_samples(file.parent / samples)["samples"].get("step", []) if samples else []
    return done, by_size


def test_ranks_share_the_batch_and_figures_are_global(outcome):
    _, by_size = outcome
    one, two = by_size["ddp", 1], by_size["ddp", 2]
    assert (one["status"], two["status"]) == ("ok", "ok"), two.get("error")
    for record in (one, two):
        rate = record["metrics"]["train.tokens_per_s"]["median"]
        assert rate * min(record["steps"]) <= 4 * 32 <= rate * max(record["steps"])
    assert two["quality"]["before"] == one["quality"]["before"]
    # The same global batches: averaged gradients of the halves are the gradient of the whole.
    assert two["final_loss"] == pytest.approx(one["final_loss"], rel=1e-4)


def test_ranks_share_one_teacher(outcome):
    _, by_size = outcome
    one, two = by_size["distilled", 1], by_size["distilled", 2]
    assert (one["status"], two["status"]) == ("ok", "ok"), two.get("error")
    # Tuned on halves of the same batches with averaged gradients; teachers of each rank's own would differ.
    assert two["final_loss"] == pytest.approx(one["final_loss"], rel=1e-4)
    assert one["metrics"]["train.teacher_s"]["median"] > 0
    assert "train.teacher_s" not in by_size["ddp", 1]["metrics"]
    assert one["quality"]["teacher"] != one["quality"]["before"]  # the student lost a layer
    assert two["quality"]["teacher"]["bits_per_byte"] == pytest.approx(one["quality"]["teacher"]["bits_per_byte"], rel=1e-4)
    full, student = (by_size[stack, 1]["metrics"]["parameters.total"]["median"] for stack in ("ddp", "distilled"))
    assert student < full


@pytest.mark.parametrize(
    ("way", "status", "words"),
    [
        ("abort", "crashed", "killed by SIGABRT"),
        ("raise", "failed", "ValueError: the last rank's own words"),
        ("hang", "timeout", "killed after 8 s in phase train"),
        ("memory", "oom", "passed the limit of 2.00 GiB"),
    ],
)
def test_a_failing_rank_ends_the_trial_on_all_and_no_other_trial(outcome, way, status, words):
    done, by_size = outcome
    record = by_size[way, 2]
    assert record["status"] == status, record.get("error")
    assert words in record["error"]
    assert by_size[way, 1]["status"] == "ok"
    if way != "hang":
        assert record["failing_rank"] == 1
        assert "rank 1: " in done.stdout
    else:
        assert "in go_wrong" in record["error"].partition("rank 1:")[2]  # where the one that hangs stands
    if way in ("abort", "raise"):
        assert record["wall_s"] < by_size["hang", 2]["wall_s"]  # at once, not at the time-out


def test_a_rank_that_dies_among_sharded_weights_ends_the_trial_at_once(outcome):
    _, by_size = outcome
    one, two = by_size["sharded", 1], by_size["sharded", 2]
    assert one["status"] == "ok", one.get("error")
    assert (two["status"], two["failing_rank"]) == ("crashed", 1)
    assert two["wall_s"] < by_size["hang", 2]["wall_s"]


def test_kill_9_leaves_no_rank_behind(tmp_path, tiny_model):
    (tmp_path / "bad.py").write_text(BAD)
    hang = 'hang = ["ddp", { technique = "bad_rank", how = "hang" }]\n'
    text = TWO.format(model=tiny_model).replace("timeout_s = 8", "timeout_s = 200").replace("[1, 2]", "[2]") + hang
    (tmp_path / "small.toml").write_text(text)
    command = [sys.executable, "-m", "effbench", "run", "small.toml", "--plugin", "bad.py", "--stack", "hang"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    children = psutil.Process(process.pid)
    while True:  # until both ranks have forked a trial: agent, two hosts, two children, or the trial of the baseline ended
        family = children.children(recursive=True)
        if len(family) >= 5:
            break
        assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait(60)
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive


def test_two_agents_on_loopback(tmp_path, tiny_model):
    (tmp_path / "small.toml").write_text(
        TWO.format(model=tiny_model).replace("timeout_s = 8", "timeout_s = 60") + 'ddp = ["ddp"]\n'
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "effbench", "join", endpoint]
    secret = {"EFFBENCH_SECRET": "only for this test"}
    other = subprocess.Popen(command, env=os.environ | secret, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    arguments = ["--launcher", "torchrun", "--nnodes", "2", "--rdzv-endpoint", endpoint]
    try:
        effbench("run", "small.toml", "--results", "out", *arguments, cwd=tmp_path, check=0, **secret)
        assert other.wait(60) == 0
    finally:
        other.kill()
    found = [r for f in (tmp_path / "out").rglob("small-ddp-*.json") for r in records(f.parent, f.name).values()]
    assert sorted((r["cell"]["world_size"], r["status"]) for r in found) == [(1, "ok"), (2, "ok")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nnodes", "2"], "launcher 'local': unknown option 'nnodes'"),
        (["--launcher", "torchrun", "--nnodes", "2"], "needs rdzv_endpoint = HOST:PORT"),
        (["--launcher", "torchrun", "--nnodes", "2", "--rdzv-endpoint", "here"], "expected HOST:PORT"),
        (["--launcher", "torchrun", "--nnodes", "3", "--rdzv-endpoint", "127.0.0.1:29412"], "cannot be spread evenly over 3"),
        (["--launcher", "torchrun", "--nnodes", "2", "--rdzv-endpoint", "127.0.0.1:29413"], "set EFFBENCH_SECRET"),
    ],
)
def test_launcher_mistakes_are_one_line(tmp_path, tiny_model, arguments, message):
    (tmp_path / "small.toml").write_text(TWO.format(model=tiny_model) + 'ddp = ["ddp"]\n')
    done = effbench("run", "small.toml", *arguments, cwd=tmp_path, check=2, EFFBENCH_SECRET="")
    assert message in done.stderr.strip().splitlines()[-1]
