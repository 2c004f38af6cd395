"""`effbench run` with a launcher of whole runs, where there is no cluster; and parts of a run on this machine."""

import subprocess
import sys

import pytest

from tests.end_to_end.conftest import effbench


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--partition", "gpu"], "launcher 'local': unknown option 'partition'"),
        (["--launcher", "torchrun", "--slurm", "qos=low"], "launcher 'torchrun': unknown option 'slurm'"),
        (["--launcher", "slurm", "--nnodes", "2"], "launcher 'slurm': unknown option 'nnodes': did you mean 'nodes'?"),
        (["--launcher", "slurm", "--budget", "1h"], "--budget, --until-clear and --only-… do not go with --launcher slurm"),
        (["--launcher", "slurm", "--only-round", "1"], "do not go with --launcher slurm: use --rounds"),
        (["--launcher", "slurm", "--time", "soon"], "--time 'soon': expected hours, minutes and seconds"),
        (["--launcher", "slurm", "--slurm", "output=x"], "output is set by effbench itself"),
        (["--until-clear", "--only-world-size", "1"], "--until-clear looks at whole boards"),
        (["--only-world-size", "2"], "no cell has world size 2: this suite has 1"),
    ],
)
def test_bad_options_are_one_line(arguments, words, tmp_path):
    done = effbench("run", "quick", *arguments, cwd=tmp_path, check=2)
    [line] = done.stderr.splitlines()
    assert words in line
    assert not list(tmp_path.iterdir())


def test_the_submitting_side_needs_no_torch_and_says_what_it_lacks(tmp_path):
    code = (
        "import sys\nfrom effbench.cli import main\n"
        "sys.argv[1:] = ['run', 'quick', '--launcher', 'slurm', '--results', 'out']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert end.code == 2, end.code\n"
        "sys.exit('torch was imported' if 'torch' in sys.modules else 0)"
    )
    env = {"PATH": str(tmp_path), "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "72 trials to run, in 3 array elements" in done.stdout
    assert "launcher 'slurm' needs sbatch, which is not on PATH" in done.stderr
    assert [file.name for file in (tmp_path / "out").iterdir()] == [".array"]  # no machine, for this one measures nothing
