"""The workflows of GitHub Actions: what they may do, and that the commands they run exist."""

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer
import yaml

from effbench.cli import app
from tests.verify.submission import write

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
COMING = {"publish", "compare"}
"""Commands that may be missing; whoever adds one has it checked here from then on."""
CALLABLE = typer.main.get_command(app)


def workflow(name):
    return read(ROOT / ".github" / "workflows" / f"{name}.yml")


def read(file):
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    return content | {"on": content.pop(True)}  # YAML 1.1 reads the key `on` as true


def steps(content):
    return [step for job in content["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_workflow_may_do_little(file):
    content = read(file)
    assert "pull_request_target" not in content["on"], "it would give untrusted code a token that writes"
    assert content["permissions"], "without it the token may do whatever the repository allows"
    jobs = content["jobs"].values()
    assert all("timeout-minutes" in job for job in jobs)
    granted = [content["permissions"], *(job["permissions"] for job in jobs if "permissions" in job)]
    assert all(isinstance(permissions, dict) for permissions in granted), "read-all and write-all are too much"
    writes = {scope for permissions in granted for scope, right in permissions.items() if right == "write"}
    assert writes == {"board-comment": {"pull-requests"}, "pages": {"pages", "id-token"}}.get(file.stem, set())


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_no_text_of_others_becomes_a_command(file):
    """`${{ … }}` is pasted into the shell before it reads the line; a variable is not."""
    for step in steps(read(file)):
        assert "${{" not in step.get("run", ""), step
        assert "secrets." not in str(step)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_actions_are_github_s_own_and_of_a_fixed_major_version(file):
    uses = [step["uses"] for step in steps(read(file)) if "uses" in step]
    assert [action for action in uses if not re.fullmatch(r"actions/[\w-]+@(v\d+|[0-9a-f]{40})", action)] == []


def test_code_of_a_pull_request_never_meets_a_token_that_writes():
    comment = workflow("board-comment")
    assert comment["on"] == {"workflow_run": {"workflows": [workflow("board")["name"]], "types": ["completed"]}}
    checkouts = [step for step in steps(comment) if step.get("uses", "").startswith("actions/checkout")]
    assert all("ref" not in step["with"] for step in checkouts), "the default branch alone"
    assert all(
        step["with"]["persist-credentials"] is False
        for file in FILES
        for step in steps(read(file))
        if "actions/checkout" in step.get("uses", "")
    )
    runs = [step["run"] for step in steps(comment) if "run" in step]
    assert runs == ['.github/sticky-comment.sh "$RUNNER_TEMP/board/comment.md"']


def effbench_commands():
    """(where, words) of every effbench command in the workflows and the pages that describe them."""
    lines = [(file.name, step["run"]) for file in FILES for step in steps(read(file)) if "run" in step]
    lines += [(page, indented) for page in ("docs/publishing.md", "docs/verifying.md") for indented in _indented(ROOT / page)]
    for where, text in lines:
        for line in text.splitlines():
            if line.strip().startswith("effbench "):
                yield where, shlex.split(re.split(r"\s\s+|\s[>|]|&&", line.strip())[0])


def _indented(page):
    return [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("    ")]


@pytest.mark.parametrize(
    ("where", "words"), list(effbench_commands()), ids=lambda value: value if isinstance(value, str) else " ".join(value)
)
def test_the_commands_parse(where, words):
    name, *arguments = words[1:]
    command = CALLABLE.commands.get(name)
    if command is None and name in COMING:
        pytest.skip(f"effbench {name} is not there yet")
    assert command is not None, f"{where}: there is no effbench {name}"
    command.make_context(name, arguments)  # raises where an option or argument is not the command's


def test_commands_are_found():
    found = {words[1] for where, words in effbench_commands() if where.endswith(".yml")}
    assert found == {"verify", "publish"}


def test_the_requirements_of_boards_are_the_project_s_without_torch():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    known = {line.replace(" ", "") for line in (*project["dependencies"], *project["optional-dependencies"]["plots"])}
    lines = (ROOT / "requirements-board.txt").read_text().splitlines()
    given = {line for line in lines if line and not line.startswith("#")}
    assert given <= known
    left_out = {re.split(r"[<>=]", line)[0] for line in known - given}
    assert left_out == {"huggingface-hub", "peft", "safetensors", "torch", "transformers"}


WITHOUT_TORCH = """
import sys

ABSENT = {"torch", "transformers", "peft", "torchao", "bitsandbytes", "safetensors", "huggingface_hub"}

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from effbench.cli import app
for command in sys.argv[2].split(","):
    words = {"publish": ["--to", sys.argv[1] + "-site"], "compare": [sys.argv[1]]}.get(command, [])
    app([command, sys.argv[1], *words], standalone_mode=False)
"""


def test_boards_need_no_torch(tmp_path):
    """As on a machine where only requirements-board.txt is installed."""
    results = tmp_path / "results"
    write(results)
    commands = ["verify", "board", *sorted(COMING & CALLABLE.commands.keys())]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(results), ",".join(commands)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "6 records: 0 errors" in done.stdout
    assert "not used" not in done.stderr
