"""Runs on a real Slurm: every record once, in sessions that pair, whatever happens to the elements."""

import json
import os
import re
import signal
import stat
import subprocess
import sys

import psutil
import pytest

from tests.end_to_end.conftest import SUITE, effbench
from tests.end_to_end.test_interruption import SLOW, _listen_to_ctrl_c
from tests.slurm.conftest import slurm_says, wait_until

pytestmark = pytest.mark.timeout(600)  # a fixture's elements each start a worker, one after another

TWO_SIZES = SUITE.replace("batch_size = [2]", "batch_size = [4]\nworld_size = [1, 2]")


def found(folder):
    """Every record below a folder with its file."""
    files = (f for f in folder.rglob("*.json") if f.name not in ("machine.json", "suite.json"))
    return [(file, json.loads(file.read_text())) for file in sorted(files)]


def of_round(folder, number):
    return [record for _, record in found(folder) if record["round"] == number]


def jobs():
    """The state of every element that Slurm still knows."""
    shown = slurm_says("squeue", "--noheader", "--array", "--states=all", "--format=%i %T")
    return dict(line.split() for line in shown.splitlines())


def processes(*words):
    """Those of effbench that run with all of these words on their command line."""
    shown = [(process, process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    return [process for process, line in shown if {"effbench", *words} <= set(line) and "srun" not in line]


def start(folder, *arguments):
    command = [sys.executable, "-m", "effbench", "run", *map(str, arguments)]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=os.environ | {"COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_listen_to_ctrl_c,  # noqa: PLW1509 - nothing else runs in this process
    )


@pytest.fixture(scope="module")
def spread(tmp_path_factory, tiny_model):
    """One round of two world sizes, the larger one over two nodes; what stood on command lines and in environments."""
    folder = tmp_path_factory.mktemp("spread")
    (folder / "small.toml").write_text(TWO_SIZES.format(model=tiny_model) + 'ddp = ["ddp"]\n')
    arguments = ["small.toml", "--results", "out", "--launcher", "slurm", "--partition", "both", "--nodes", 2]
    run = start(folder, *arguments)
    [joining] = wait_until(lambda: processes("join"), "effbench join on the second node", 120)
    secret = joining.environ().get("EFFBENCH_SECRET", "")
    lines = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
    out, err = run.communicate(timeout=200)
    assert run.returncode == 0, out + err
    return folder, out, arguments, secret, lines


def test_ranks_on_two_nodes_are_paired_within_their_own_session(spread):
    folder, *_ = spread
    records = of_round(folder / "out", 1)
    assert {record["status"] for record in records} == {"ok"}
    at = {(r["cell"]["stack"], r["cell"]["world_size"], r["session"]) for r in records}
    assert len(at) == len(records) == 4
    [one], [two] = ([session for stack, size, session in at if (stack, size) == ("ddp", n)] for n in (1, 2))
    assert one != two
    assert {session for stack, _, session in at if stack == "full"} == {one, two}


def test_the_nodes_secret_stands_on_no_command_line(spread):
    *_, secret, lines = spread
    assert re.fullmatch("[0-9a-f]{64}", secret)
    assert any("effbench join" in line for line in lines)
    assert not any(secret in line for line in lines)


def test_progress_and_the_board_are_shown_and_nothing_is_left(spread):
    folder, out, *_ = spread
    assert "4 trials to run, in 2 array elements" in out
    assert "[4/4] round 1" in out
    assert "small: path:tiny on docs, world_size 2" in out
    assert [file.name for file in (folder / "out" / ".array").iterdir()] == [".gitignore"]
    assert not processes("join")
    assert not any(str(folder) in file.read_text() for file, _ in found(folder / "out"))


def test_what_is_measured_is_not_submitted_again(spread):
    folder, _, arguments, *_ = spread
    known = set(jobs())
    again = effbench("run", *arguments, cwd=folder, check=0)
    assert "0 trials to run" in again.stdout
    assert set(jobs()) == known
    assert "small: path:tiny on docs, world_size 2" in again.stdout


@pytest.fixture(scope="module")
def hardships(tmp_path_factory, tiny_model):
    """Two rounds: the first is requeued in the middle, the second killed; then once more, preempted, and out of time."""
    folder = tmp_path_factory.mktemp("hardships")
    (folder / "slow.py").write_text(SLOW)
    (folder / "small.toml").write_text(SUITE.format(model=tiny_model) + "".join(f'{name} = ["slow"]\n' for name in "abc"))
    on_slurm = ("--launcher", "slurm", "--slurm", "exclusive=no", "--cpus-per-task", 1)
    arguments = ("small.toml", "--results", "out", "--plugin", "slow.py", "--rounds", 2, *on_slurm)
    first = start(folder, *arguments)
    [process] = wait_until(lambda: processes("--only-round", "2"), "the second element", 120)
    process.kill()
    begun = wait_until(lambda: of_round(folder / "out", 1), "a record of the first element", 120)
    [array] = {job.partition("_")[0] for job, state in jobs().items() if state == "RUNNING"}
    slurm_says("scontrol", "requeue", f"{array}_0")
    _, told = first.communicate(timeout=200)
    kept = {file: file.stat().st_mtime_ns for file, _ in found(folder / "out")}
    second = start(folder, *arguments)
    [process] = wait_until(lambda: processes("--only-round", "2"), "the second element once more", 120)
    [job] = [job for job, state in jobs().items() if state == "RUNNING"]
    slurm_says("sbatch", "--wait", "--partition=urgent", "--exclusive", "--output=/dev/null", "--wrap=true")
    assert not process.is_running()
    wait_until(lambda: processes("--only-round", "2"), "the second element after its preemption", 120)
    slurm_says("scancel", "--signal=USR2", job)  # as Slurm does before the time limit
    wait_until(lambda: jobs()[job] == "PENDING", "the second element back in the queue")
    out, err = second.communicate(timeout=200)
    return folder, array, (first.returncode, told), begun, kept, (second.returncode, out, err)


def test_a_requeued_element_measures_only_what_is_missing(hardships):
    folder, _, _, begun, *_ = hardships
    records = of_round(folder / "out", 1)
    assert {record["status"] for record in records} == {"ok"}
    [before] = {record["session"] for record in begun}
    assert len({record["session"] for record in records} - {before}) == 1
    # A stack counts where its baseline is of the same session: so it is measured once, and the baseline in each session.
    paired = {record["session"] for record in records if record["cell"]["stack"] == "full"}
    stacks = [
        record["cell"]["stack"] for record in records if record["session"] in paired and record["cell"]["stack"] != "full"
    ]
    assert sorted(stacks) == ["a", "b", "c"]


def test_an_element_that_dies_is_one_line_and_the_others_go_on(hardships):
    _, array, (status, told), *_ = hardships
    assert status == 1
    [line] = [line for line in told.splitlines() if line.startswith("job ")]
    assert line.startswith(f"job {array}_1 (round 2, world size 1) ended as FAILED: ")
    assert "Traceback" not in told


def test_the_same_command_measures_what_a_dead_element_left_and_survives_preemption_and_its_time_limit(hardships):
    folder, _, _, _, kept, (status, out, err) = hardships
    assert status == 0, out + err
    assert "4 trials to run, in 1 array elements" in out
    assert all(file.stat().st_mtime_ns == written for file, written in kept.items())
    assert sorted(r["cell"]["stack"] for r in of_round(folder / "out", 2)) == ["a", "b", "c", "full"]


@pytest.mark.parametrize(
    ("how", "partition", "state"), [(signal.SIGINT, "single", "RUNNING"), (signal.SIGTERM, "shut", "PENDING")]
)
def test_a_stopped_run_cancels_its_array(tmp_path, tiny_model, how, partition, state):
    (tmp_path / "small.toml").write_text(SUITE.format(model=tiny_model))
    before = set(jobs())
    run = start(tmp_path, "small.toml", "--results", "out", "--launcher", "slurm", "--partition", partition)
    while f"1 {state.lower()}" not in run.stdout.readline():
        assert run.poll() is None
    [mine] = set(jobs()) - before
    [folder] = [file for file in (tmp_path / "out" / ".array").iterdir() if file.is_dir()]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    run.send_signal(how)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "what was submitted is cancelled" in err
    wait_until(lambda: jobs().get(mine, "CANCELLED") == "CANCELLED", "a cancelled element")
    wait_until(lambda: not processes("--only-round"), "no process of the element")
    assert not folder.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--partition", "nowhere"], "invalid partition specified: nowhere"),
        (["--partition", "both", "--slurm", "nodelist=three"], "Invalid node name specified"),
    ],
)
def test_what_sbatch_refuses_is_said_in_its_own_words(tmp_path, tiny_model, arguments, words):
    (tmp_path / "small.toml").write_text(SUITE.format(model=tiny_model))
    done = effbench("run", "small.toml", "--results", "out", "--launcher", "slurm", *arguments, cwd=tmp_path, check=2)
    [line] = done.stderr.splitlines()
    assert line.startswith("effbench: sbatch did not take it: ")
    assert words in line
