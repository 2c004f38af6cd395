"""Ctrl-C and kill -9: no process is left, no finished trial is lost, and the same command completes."""

import os
import re
import signal
import subprocess
import sys

import psutil
import pytest

from tests.end_to_end.conftest import effbench, records

STACKS = 'a = [{ technique = "slow" }]\nb = ["slow"]\nc = ["slow"]\n'
SLOW = '''
from time import sleep
from typing import ClassVar
from effbench.plugin import Technique, hookimpl


class Slow(Technique):
    """Takes a second, so that a run can be caught in the middle of it."""

    name: ClassVar = "slow"
    family: ClassVar = "other"

    def apply(self, model, ctx):
        sleep(1)
        return model


@hookimpl
def register_techniques(register):
    register(Slow)
'''


def _listen_to_ctrl_c():
    """A shell's background jobs, such as a test run's, are started deaf to it, and their children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_run_leaves_nothing_and_continues(suite, tmp_path, how):
    file = suite(STACKS)
    (tmp_path / "slow.py").write_text(SLOW)
    arguments = ["run", file, "--results", "out", "--plugin", "slow.py", "--rounds", "2"]
    command = [sys.executable, "-m", "effbench", *map(str, arguments)]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        preexec_fn=_listen_to_ctrl_c,  # noqa: PLW1509 - nothing else runs in this process
    )
    seen = [process.stdout.readline() for _ in range(3)]  # the plan's line, and two finished trials
    assert seen[2].startswith("[2/8]")
    family = psutil.Process(process.pid).children(recursive=True)
    assert family
    os.kill(process.pid, how)
    process.wait(60)
    finished = records(tmp_path / "out")
    files = {file: file.read_bytes() for file in (tmp_path / "out").rglob("*.r[0-9]*.json")}
    assert len(finished) in (2, 3)
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive
    if how == signal.SIGINT:
        assert process.returncode == 130
    done = effbench(*arguments, cwd=tmp_path, check=0)
    to_run = int(re.search(r"(\d+) to run", done.stdout)[1])
    missing = 8 - len(finished)  # and, of a round cut in two, what must be measured beside its baseline once more
    assert missing <= to_run <= 8
    assert len(records(tmp_path / "out")) == 8
    assert all(file.read_bytes() == content for file, content in files.items())
    assert "0 to run" in effbench(*arguments, cwd=tmp_path, check=0).stdout
