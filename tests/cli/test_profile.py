"""Profiles end to end: the command, its traces as TensorBoard's plugin reads them, and what it must not touch."""

import json
import subprocess
import sys

import pytest

from effbench.store.profile import KINDS, read_profiles
from tests.end_to_end.conftest import SUITE, effbench, tiny_model  # noqa: F401 - a fixture

READ_AS_TENSORBOARD = """
import json, sys
from torch_tb_profiler.io import Cache
from torch_tb_profiler.profiler.data import RunProfileData
from torch_tb_profiler.profiler.loader import RunLoader

def main():
    found = {}
    for folder in sys.argv[1:]:
        [((worker, _), run)] = RunLoader("run", folder, Cache()).load().profiles.items()
        data = RunProfileData.parse(worker, 1, run.trace_file_path, Cache().cache_dir)
        found[folder] = {
            "worker": worker,
            "views": [view.display_name for view in run.views],
            "steps": data.steps_names,
            "parts": {part["name"]: part["value"] for part in run.overview["performance"][0]["children"]},
        }
    print(json.dumps(found))

if __name__ == "__main__":  # the loader spawns processes, which import this file again
    main()
"""


BROKEN = """
from effbench.plugin import Technique, hookimpl

class Broken(Technique):
    "Fails after training."
    name = "broken"
    family = "other"
    def infer(self, inference, ctx):
        raise RuntimeError("no such kernel")

@hookimpl
def register_techniques(register):
    register(Broken)
"""
STACKS = """
lora = ["lora"]
int8 = ["int8_dynamic"]
bad = ["broken"]
"""


def profile(folder, *stacks, check):
    options = [option for stack in stacks for option in ("--stack", stack)]
    plugins = ("--plugin", "broken.py", "--set", "inference.new_tokens=3")
    return effbench("profile", "small.toml", *options, *plugins, cwd=folder, check=check)


@pytest.fixture(scope="module")
def profiled(tmp_path_factory, tiny_model):  # noqa: F811 - the fixture
    folder = tmp_path_factory.mktemp("profile")
    (folder / "small.toml").write_text(SUITE.format(model=tiny_model) + STACKS)
    (folder / "broken.py").write_text(BROKEN)
    return folder, profile(folder, "lora", "int8", "bad", check=1)


@pytest.fixture(scope="module")
def parts(profiled):
    folder, _ = profiled
    cells = (folder / "effbench-profiles").iterdir()
    return {cell.name.split("-")[1]: {p.part: p for p in read_profiles(cell)} for cell in cells}


def test_every_part_has_its_operators_and_its_share_by_kind(profiled, parts):
    assert set(parts) == {"lora", "int8", "bad"}, "the baseline was not asked for"
    lora, int8 = parts["lora"], parts["int8"]
    assert list(lora) == list(int8) == ["train", "prefill", "decode"]
    for part in [*lora.values(), *int8.values()]:
        assert sum(part.share(kind) for kind in KINDS) == pytest.approx(1)
        assert part.share("matmul") > 0
        assert part.share("attention") > 0
    assert lora["train"].share("optimizer") > 0
    assert lora["prefill"].share("optimizer") == 0
    assert any(o.name == "quantized::linear_dynamic" and o.kind == "matmul" for o in int8["decode"].operators)
    assert (lora["train"].steps, lora["decode"].steps) == (3, 1), "two tokens after the first: one warms up"
    assert "tensorboard --logdir effbench-profiles" in profiled[1].stdout
    assert "outside operators" in profiled[1].stdout


def test_a_trial_that_fails_is_told_and_keeps_what_came_before(profiled, parts):
    assert list(parts["bad"]) == ["train"]
    assert "no such kernel" in profiled[1].stderr


def test_a_profile_leaves_no_record(profiled):
    folder, _ = profiled
    assert sorted(p.name for p in folder.iterdir()) == ["broken.py", "effbench-profiles", "small.toml"]


def test_the_traces_open_in_tensorboards_profiler_tab(profiled, tmp_path):
    pytest.importorskip("torch_tb_profiler")
    [cell] = (profiled[0] / "effbench-profiles").glob("*-lora-*")
    folders = [str(cell / part) for part in ("train", "prefill", "decode")]
    script = tmp_path / "read.py"
    script.write_text(READ_AS_TENSORBOARD)
    done = subprocess.run([sys.executable, script, *folders], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert [len(found[folder]["steps"]) for folder in folders] == [3, 3, 1]
    for folder in folders:
        assert found[folder]["worker"] == "rank0"
        assert {"Overview", "Operator", "Trace", "Memory"} <= set(found[folder]["views"])
    # What TensorBoard calls Other, in microseconds per step, is what no operator took: here and there the same figure.
    prefill = next(p for p in read_profiles(cell) if p.part == "prefill")
    outside = prefill.share("outside operators") * prefill.seconds
    assert found[folders[1]]["parts"]["Other"] == pytest.approx(1e6 * outside, abs=1)


def test_a_second_profile_takes_the_place_of_the_first(profiled):
    folder, _ = profiled
    [before] = folder.glob("effbench-profiles/*-lora-*/prefill/*.pt.trace.json.gz")
    profile(folder, "lora", check=0)
    [after] = folder.glob("effbench-profiles/*-lora-*/prefill/*.pt.trace.json.gz")
    assert after != before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--stack", "lor"], "unknown stack 'lor': did you mean 'lora'"),
        (["--cell", "s9999"], "unknown cell 's9999'"),
        (["--launcher", "slrm"], "unknown launcher 'slrm'"),
    ],
)
def test_bad_input_is_one_line(arguments, words, tmp_path):
    done = effbench("profile", "quick", *arguments, cwd=tmp_path, check=2)
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
