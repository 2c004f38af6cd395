"""The launcher slurm, as far as no Slurm is needed."""

import os
import pickle
import pickletools
import sys
from types import SimpleNamespace

import pytest
from effbench_plugins.slurm import node, submission
from effbench_plugins.slurm.node import OnNode
from effbench_plugins.slurm.submission import SlurmSubmission

from effbench.plugin import Element, InputError
from effbench.plugin.discovery import discover


def launcher(**options):
    return discover().array_launcher("slurm", options)


def test_it_is_no_launcher_of_workers():
    with pytest.raises(InputError, match="only `effbench run` can"):
        discover().launcher("slurm")
    assert discover().array_launcher("local", {}) is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"nnodes": 2}, "unknown option 'nnodes': did you mean 'nodes'"),
        ({"time": 5.0}, "option time = 5.0: input should be greater than or equal to 60"),
        ({"slurm": {"array": "1"}}, "array is set by effbench itself"),
        ({"slurm": {"partition": "gpu"}}, "partition has an option of its own: --partition"),
        ({"slurm": {"mem\n": "1"}}, "is not the name of a long option"),
    ],
)
def test_bad_options_are_one_line(options, words):
    with pytest.raises(InputError, match="launcher 'slurm'") as refused:
        launcher(**options)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("options", "size", "reason"),
    [
        ({}, 4, None),
        ({"nodes": 2}, 1, None),
        ({"nodes": 2}, 3, "world_size 3 cannot be spread evenly over 2 nodes"),
        ({"nodes": 2, "gpus_per_node": 2}, 4, None),
        ({"nodes": 2, "gpus_per_node": 1}, 4, "world_size 4 needs 2 GPUs on each of 2 nodes, gpus_per_node = 1"),
    ],
)
def test_ranks_must_fit_on_the_nodes(options, size, reason):
    assert launcher(**options).unsupported(size) == reason


def test_gpus_decide_what_suites_are_planned_for():
    assert launcher().device == "cpu"
    assert launcher(gpus_per_node=1).device == "cuda"


@pytest.fixture
def arrays(monkeypatch, tmp_path):
    """What is submitted: for each array its parameters and the rounds and world sizes of its elements."""
    taken = []
    monkeypatch.setattr(submission, "submit", lambda arrays, title, folder: taken.extend(arrays))

    def of(sizes, cores, **options):
        launcher(**options).submit([Element(1, size, ()) for size in sizes], "s", tmp_path, cores)
        return [(parameters, [element.world_size for element in elements]) for parameters, elements in taken]

    return of


def test_only_elements_of_several_ranks_get_several_nodes_and_all_get_the_same_cores(arrays):
    [(one, ones), (two, twos)] = arrays([1, 2, 4, 1], cores=8, nodes=2, gpus_per_node=2)
    assert (ones, twos) == ([1, 1], [2, 4])
    assert (one["nodes"], two["nodes"]) == (1, 2)
    assert one | {"nodes": 2} == two
    assert one["cpus_per_task"] == 4


def test_machines_are_exclusive_and_elements_requeued_unless_asked_otherwise(arrays):
    [(parameters, _)] = arrays([1], cores=1, time=5400.0, partition="gpu")
    assert parameters["additional_parameters"] == {"exclusive": True, "requeue": True}
    assert (parameters["time"], parameters["partition"], parameters["gpus_per_node"]) == (90, "gpu", None)


def test_an_option_of_sbatch_is_passed_on_or_taken_away(arrays):
    [(parameters, _)] = arrays([1], cores=1, slurm={"exclusive": False, "account": "me"})
    assert parameters["additional_parameters"] == {"requeue": True, "account": "me"}


def test_without_submitit_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(InputError, match=r"pip install 'effbench\[slurm\]'"):
        launcher().submit([Element(1, 1, ())], "s", tmp_path, 1)


def test_without_slurm_its_missing_program_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="needs sbatch, which is not on PATH"):
        launcher().submit([Element(1, 1, ())], "s", tmp_path, 1)


@pytest.fixture
def squeue(monkeypatch):
    """What squeue will answer."""
    answers = []

    def run(command, **_):
        assert command[0] == "squeue"
        assert "--name=mine" in command
        text, error = answers.pop(0)
        return SimpleNamespace(stdout=text, stderr=error, returncode=1 if error else 0)

    monkeypatch.setattr(submission.subprocess, "run", run)
    return answers


def test_states_are_slurms_and_known_ones_hold_where_it_is_silent(squeue, tmp_path):
    mine = SlurmSubmission("mine", ["7_0", "7_1"], tmp_path)
    squeue += [("7_1|PENDING|Resources\n7_0|COMPLETED|None\n", ""), ("", "error: no contact"), ("7_1|TIMEOUT|None\n", "")]
    first, silent, last = ([(s.word, s.reason, s.ended, s.died) for s in mine.look()] for _ in range(3))
    assert first == [("COMPLETED", "", True, False), ("PENDING", "Resources", False, False)]
    assert [state[:2] for state in silent] == [("COMPLETED", "no contact"), ("PENDING", "no contact")]
    assert last == [("COMPLETED", "", True, False), ("TIMEOUT", "", True, True)]


def test_an_element_that_slurm_forgot_has_died_unless_it_left_a_result(squeue, tmp_path):
    mine = SlurmSubmission("mine", ["7_0", "7_1"], tmp_path)
    (tmp_path / "7_1_0_result.pkl").write_bytes(b"not a pickle: it is never read")
    squeue += [("", "")]
    assert [(state.word, state.ended, state.died) for state in mine.look()] == [("GONE", True, True), ("GONE", True, False)]


def test_last_words_are_the_elements_own(tmp_path):
    log = "a warning\neffbench: no such model\nsrun: error: task 0: Exited with exit code 2\n\n"
    (tmp_path / "7_0_0_log.err").write_text(log)
    mine = SlurmSubmission("mine", ["7_0", "7_1"], tmp_path)
    assert mine.last_words("7_0") == "effbench: no such model"
    assert mine.last_words("7_1") == "it wrote nothing"


@pytest.mark.parametrize(("status", "ends"), [(0, None), (1, None), (2, 2), (-9, 137)])
def test_an_element_fails_where_its_run_did_not_come_to_an_end(monkeypatch, status, ends):
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "1")
    monkeypatch.setattr(node, "_run", lambda arguments, environment: status)
    if ends is None:
        OnNode(("run",))()
    else:
        with pytest.raises(SystemExit) as ended:
            OnNode(("run",))()
        assert ended.value.code == ends


def test_what_is_pickled_is_a_name_and_a_command_line():
    packed = pickletools.genops(pickle.dumps(OnNode(("run", "quick"))))
    texts = {text for _, text, _ in packed if isinstance(text, str)}
    assert texts == {"effbench_plugins.slurm.node", "OnNode", "arguments", "run", "quick"}


def test_several_nodes_join_with_a_secret_of_their_own_in_the_environment(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "3")
    monkeypatch.setenv("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "6")
    started = []

    class Process:
        def __init__(self, command, env):
            started.append((list(command), env["EFFBENCH_SECRET"]))

        def wait(self, timeout=None):
            return 0

        def terminate(self):
            pass

        kill = terminate

    monkeypatch.setattr(node.subprocess, "Popen", Process)
    OnNode(("run", "quick"))()
    OnNode(("run", "quick"))()
    joins, runs = started[::2], started[1::2]
    for (join, secret), (run, same) in zip(joins, runs, strict=True):
        endpoint = join[-1]
        assert join[:1] + join[-4:-1] == ["srun", "-m", "effbench", "join"]
        assert {"--nodes=2", "--relative=1", "--overlap", "--cpus-per-task=6"} <= set(join)
        assert run[1:5] == ["-m", "effbench", "run", "quick"]
        assert run[5:] == ["--launcher", "torchrun", "--nnodes", "3", "--rdzv-endpoint", endpoint]
        assert secret == same
        assert secret not in " ".join([*join, *run])
    assert joins[0][1] != joins[1][1]
    assert "EFFBENCH_SECRET" not in os.environ


def test_what_sbatch_refuses_is_told_in_its_words_even_where_nothing_can_be_cancelled(monkeypatch, tmp_path):
    pytest.importorskip("submitit")
    for program, words in {"sbatch": "no such partition", "scancel": "nobody there", "srun": "", "squeue": ""}.items():
        (tmp_path / program).write_text(f"#!/bin/sh\necho 'sbatch: error: {words}' >&2\nexit 1\n")
        (tmp_path / program).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(InputError, match=r"^sbatch did not take it: .*no such partition"):
        submission.submit([({}, [Element(1, 1, ("run", "quick"))])], "quick", tmp_path / "jobs")
