"""Two machines as far as a network tells: two namespaces, each with an address of its own, joined by a cable."""

import os
import subprocess
import sys
import uuid
from contextlib import ExitStack

import pytest

from tests.end_to_end.conftest import records
from tests.end_to_end.test_ranks import TWO

FIRST, SECOND, PORT = "10.231.47.1", "10.231.47.2", 29471


def ip(*words):
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=True)


@pytest.fixture
def namespaces():
    """The names of both; skipped where this process may not make any."""
    token = uuid.uuid4().hex[:6]
    names = [f"effbench-{token}-{n}" for n in (1, 2)]
    cables = [f"eb{token}{n}" for n in (1, 2)]
    with ExitStack() as made:
        try:
            for name in names:
                ip("netns", "add", name)
                made.callback(ip, "netns", "del", name)  # and the cable with it
            ip("link", "add", cables[0], "netns", names[0], "type", "veth", "peer", "name", cables[1], "netns", names[1])
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"network namespaces cannot be made here: {getattr(error, 'stderr', None) or error}")
        for name, cable, address in zip(names, cables, (FIRST, SECOND), strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", cable)
            ip("-n", name, "link", "set", cable, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names


def test_ranks_on_two_networks_meet_over_what_joins_them(tmp_path, tiny_model, namespaces):
    text = TWO.format(model=tiny_model).replace("timeout_s = 8", "timeout_s = 60") + 'ddp = ["ddp"]\n'
    (tmp_path / "small.toml").write_text(text)
    endpoint = f"{FIRST}:{PORT}"

    def start(namespace, *arguments):
        command = ["ip", "netns", "exec", namespace, sys.executable, "-m", "effbench", *arguments]
        environment = os.environ | {"EFFBENCH_SECRET": "only for this test", "OMP_NUM_THREADS": "1"}
        environment.pop("GLOO_SOCKET_IFNAME", None)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes)

    launcher = ["--launcher", "torchrun", "--nnodes", "2", "--rdzv-endpoint", endpoint]
    with start(namespaces[1], "join", endpoint) as other:
        try:
            with start(namespaces[0], "run", "small.toml", "--results", "out", *launcher) as first:
                said, _ = first.communicate(timeout=200)
            assert first.returncode == 0, said
            assert other.wait(60) == 0
        finally:
            other.kill()
    found = [r for f in (tmp_path / "out").rglob("small-ddp-*.json") for r in records(f.parent, f.name).values()]
    assert sorted((r["cell"]["world_size"], r["status"]) for r in found) == [(1, "ok"), (2, "ok")]
