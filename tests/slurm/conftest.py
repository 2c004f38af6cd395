"""A real Slurm on this machine: two nodes of it, as one controller sees them, configured and started for these tests alone."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from contextlib import ExitStack

import psutil
import pytest

from tests.end_to_end.conftest import suite, tiny_model

__all__ = ["suite", "tiny_model"]

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
CONF = """
ClusterName=effbench
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
# A requeued job waits until its first credential has expired.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=5
NodeName=one NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2
NodeName=two NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2
PartitionName=single Nodes=one Default=YES
PartitionName=both Nodes=one,two
PartitionName=shut Nodes=one State=DOWN
PartitionName=urgent Nodes=one PriorityTier=10
"""


def wait_until(condition, what, timeout=60):
    """Look until it is so."""
    deadline = time.monotonic() + timeout
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {timeout} s: {what}"
        time.sleep(0.1)
    return found


def slurm_says(*command):
    """What a program of Slurm's prints."""
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout.strip()


@pytest.fixture(scope="session", autouse=True)
def slurm(tmp_path_factory):
    """Start it, wait until both nodes are idle, and leave no process of it."""
    if missing := [program for program in PROGRAMS if not shutil.which(program)]:
        pytest.skip(f"Slurm is not installed (no {', '.join(missing)}): `make test-slurm` installs it")
    if os.geteuid() != 0:
        pytest.skip("a Slurm of its own is started as root alone")
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "state").mkdir()
    _write_private(folder / "munge.key", secrets.token_bytes(128))
    host = socket.gethostname().partition(".")[0]
    conf = folder / "slurm.conf"
    conf.write_text(CONF.format(host=host, folder=folder, user="root", ports=_free_ports(3)))
    with ExitStack() as started:
        for command in (
            ["munged", "--foreground", "--force", f"--key-file={folder}/munge.key", f"--socket={folder}/munge.socket",
             f"--pid-file={folder}/munge.pid", f"--log-file={folder}/munge.log", f"--seed-file={folder}/munge.seed"],
            ["slurmctld", "-D", "-f", conf],
            ["slurmd", "-D", "-f", conf, "-N", "one"],
            ["slurmd", "-D", "-f", conf, "-N", "two"],
        ):  # fmt: skip
            _start(command, folder, started)
            if command[0] == "munged":
                wait_until((folder / "munge.socket").exists, "munged's socket")
        patch = started.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("SLURM_CONF", str(conf))
        wait_until(lambda: _idle_nodes() == 2, "two idle nodes")
        yield folder
        subprocess.run(["scancel", "--state=RUNNING"], check=False)
        subprocess.run(["scancel", "--state=PENDING"], check=False)
        wait_until(lambda: not slurm_says("squeue", "--noheader"), "an empty queue")


def _start(command, folder, started):
    log = started.enter_context((folder / "daemons.log").open("ab"))
    process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    started.callback(_stop, process)


def _stop(process):
    family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive


def _idle_nodes():
    command = ["sinfo", "--noheader", "--Node", "--partition=both", "--format=%T"]
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    return shown.stdout.split().count("idle")


def _write_private(file, content):
    file.touch(mode=0o400)
    with open(os.open(file, os.O_WRONLY), "wb") as opened:
        opened.write(content)


def _free_ports(count):
    with ExitStack() as held:
        servers = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [server.getsockname()[1] for server in servers]
