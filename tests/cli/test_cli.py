import json
import subprocess
import sys

import pytest

from effbench.cli import main
from effbench.plugin import InputError
from tests.end_to_end.conftest import effbench


@pytest.mark.parametrize(
    "command",
    [
        ["--help"],
        ["list", "--json"],
        ["plan", "quick", "--json"],
        ["doctor"],
        ["run", "--help"],
        ["compare", "--help"],
        ["profile", "--help"],
        ["calibrate", "--help"],
        ["estimate", "--help"],
    ],
)
def test_looking_around_does_not_import_torch(command, tmp_path):
    code = (
        "import sys\nfrom effbench.cli import main\nsys.argv[1:] = " + repr(command) + "\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "sys.exit('torch was imported' if 'torch' in sys.modules else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_bad_input_is_one_line_without_control_characters(monkeypatch, capsys):
    """It may quote a record."""

    def refuse():
        raise InputError("no machine \x1b]0;title\x07")

    monkeypatch.setattr("effbench.cli.app", refuse)
    with pytest.raises(SystemExit, match="2"):
        main()
    assert capsys.readouterr().err == "effbench: no machine \ufffd]0;title\ufffd\n"


def test_help_has_examples(tmp_path):
    for command in ("run", "board", "compare", "claims", "pareto", "verify", "list", "plan", "profile", "calibrate", "doctor"):
        assert "effbench " + command in effbench(command, "--help", cwd=tmp_path, check=0).stdout


def test_list_as_json(tmp_path):
    rows = json.loads(effbench("list", "techniques", "--json", cwd=tmp_path, check=0).stdout)
    assert {"name", "family", "summary", "options", "requires", "available"} <= set(rows[0])
    assert {"lora", "magnitude_pruning", "int8_dynamic", "mixed_precision"} <= {row["name"] for row in rows}
    for kind in ("models", "workloads", "meters", "launchers", "reporters", "suites", "plugins"):
        listed = json.loads(effbench("list", kind, "--json", cwd=tmp_path, check=0).stdout)
        assert listed
        assert all(row["name"] for row in listed)


def test_plan_as_json(tmp_path):
    content = json.loads(effbench("plan", "quick", "--json", cwd=tmp_path, check=0).stdout)
    assert len(content["cells"]) == 24
    assert content["estimate"]["minutes"] > 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "quik"], "unknown suite 'quik': did you mean 'quick'"),
        (["run", "absent.toml"], "absent.toml: no such file"),
        (["run", "quick", "--stack", "lor"], "unknown stack 'lor': did you mean 'lora'"),
        (["run", "quick", "--set", "training.steps=0"], "training.steps = 0: input should be greater than or equal to 1"),
        (["run", "quick", "--set", "nothing"], "expected KEY=VALUE"),
        (["run", "quick", "--launcher", "slrm"], "unknown launcher 'slrm'"),
        (["board", "nowhere"], "nowhere: no such results folder"),
        (["board", ".", "--format", "tabel"], "unknown reporter 'tabel': did you mean 'table'"),
        (["list", "technique"], "unknown kind 'technique': did you mean 'techniques'"),
    ],
)
def test_bad_input_is_one_clear_line_and_exit_status_2(arguments, words, tmp_path):
    done = effbench(*arguments, cwd=tmp_path, check=2)
    assert words.lower() in done.stderr.lower()
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
