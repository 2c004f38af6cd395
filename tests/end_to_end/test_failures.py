"""A plugin that misbehaves gets a record that says so, and every other trial is unharmed."""

import pytest

from tests.end_to_end.conftest import effbench, records

BAD = '''
import ctypes, os, sys, time
from typing import ClassVar, Literal

from effbench.plugin import Technique, hookimpl


class Bad(Technique):
    """Misbehaves in the chosen way."""

    name: ClassVar = "bad"
    family: ClassVar = "other"
    how: Literal["raise", "print", "exit", "segfault", "hang", "memory", "type", "diverge", "interrupt"]

    def apply(self, model, ctx):
        print("noise from a plugin")
        if self.how == "raise":
            raise ValueError("the plugin's own words")
        if self.how == "exit":
            sys.exit(3)
        if self.how == "segfault":
            ctypes.string_at(0)
        if self.how == "hang":
            time.sleep(1000)
        if self.how == "memory":
            self.grab()
        if self.how == "type":
            return "not a model"
        if self.how == "diverge":
            import torch
            with torch.no_grad():
                next(model.parameters()).fill_(float("nan"))
        return model

    def grab(self):
        hoard = []
        while True:
            hoard.append(bytearray(os.urandom(1 << 20)) * 32)


@hookimpl
def register_techniques(register):
    register(Bad)
'''


@pytest.fixture(scope="module")
def outcome(tmp_path_factory, tiny_model):
    from tests.end_to_end.conftest import SUITE

    folder = tmp_path_factory.mktemp("failures")
    (folder / "bad.py").write_text(BAD)
    ways = ["raise", "print", "exit", "segfault", "hang", "memory", "type", "diverge"]
    stacks = "".join(f'{way} = [{{ technique = "bad", how = "{way}" }}]\n' for way in ways)
    text = SUITE.format(model=tiny_model).replace("timeout_s = 60", "timeout_s = 15\nmemory_gb = 2.0") + stacks
    (folder / "small.toml").write_text(text)
    done = effbench("run", "small.toml", "--plugin", "bad.py", "--results", "out", cwd=folder, check=1)
    return folder, done, records(folder / "out")


@pytest.mark.parametrize(
    ("way", "status", "words"),
    [
        ("raise", "failed", "ValueError: the plugin's own words"),
        ("exit", "failed", "SystemExit: 3"),
        ("segfault", "crashed", "SIGSEGV"),
        ("hang", "timeout", "killed after 15 s in phase apply"),
        ("memory", "oom", "passed the limit of 2.00 GiB"),
        ("type", "failed", "bad.apply returned str, not Module"),
        ("diverge", "diverged", "nan"),
        ("print", "ok", None),
        ("full", "ok", None),
    ],
)
def test_each_failure_has_its_own_status_and_reason(outcome, way, status, words):
    record = outcome[2][way, 1]
    assert record["status"] == status, record["error"]
    if words:
        assert words in record["error"]


def test_a_failure_that_raises_carries_its_traceback(outcome):
    assert "in apply" in outcome[2]["raise", 1]["error"]
    assert "Fatal Python error: Segmentation fault" in outcome[2]["segfault", 1]["error"]


def test_what_a_plugin_prints_is_not_on_our_output(outcome):
    assert "noise from a plugin" not in outcome[1].stdout + outcome[1].stderr


def test_no_record_says_where_it_was_made(outcome):
    import getpass
    import socket

    folder, _, _ = outcome
    for file in (folder / "out").rglob("*.json"):
        text = file.read_text()
        assert socket.gethostname() not in text
        assert str(folder) not in text
        assert f"/{getpass.getuser()}/" not in text


def test_what_ended_badly_stays_until_asked_for(outcome):
    folder, _, before = outcome
    again = effbench("run", "small.toml", "--plugin", "bad.py", "--results", "out", "--stack", "raise", cwd=folder, check=1)
    assert "0 to run" in again.stdout
    (folder / "bad.py").write_text(BAD.replace('raise ValueError("the plugin\'s own words")', "pass"))
    mended = effbench("run", "small.toml", "--plugin", "bad.py", "--results", "out", "--stack", "raise", cwd=folder, check=0)
    # Its code changed, so its record is of older code; the baseline stands beside it, in a file of its own.
    assert "2 to run, 1 of them again" in mended.stdout
    assert records(folder / "out")["raise", 1]["status"] == "ok"
    [kept] = records(folder / "out", "small-full-*.r1.json").values()
    assert kept == before["full", 1]
