"""What stands in a pull request's comment, and how it gets there."""

import os
import shutil
import subprocess
from pathlib import Path

import pull_request
import pytest

from effbench.store.pack import pack
from tests.verify.submission import MACHINE, edit, record_file, write

SCRIPT = Path(__file__).parents[2] / ".github" / "sticky-comment.sh"


@pytest.fixture
def base_and_head(tmp_path):
    write(tmp_path / "base")
    shutil.copytree(tmp_path / "base", tmp_path / "head")
    return tmp_path / "base", tmp_path / "head"


def said(base, head):
    """The comment, and the commands that it is made of."""
    commands = []

    def run(*arguments):
        commands.append(arguments)
        return f"<{arguments[0]}>"

    return pull_request.comment(base, head, run), commands


def test_what_did_not_change_is_not_compared(base_and_head):
    text, commands = said(*base_and_head)
    assert [command[0] for command in commands] == ["verify"]
    assert text == "## Records\n\n```text\n<verify>\n```\n"


def test_a_folder_that_changed_is_compared(base_and_head):
    base, head = base_and_head
    folder = head / MACHINE.slug / "s"
    edit(record_file(folder), lambda content: content.update(git=None))
    record_file(folder, number=2).unlink()
    text, commands = said(base, head)
    assert commands[1:] == [("compare", str(base / MACHINE.slug / "s"), str(folder), "--format", "markdown")]
    assert f"### `{MACHINE.slug}/s`: 0 files added, 1 changed, 1 removed\n\n<compare>" in text


def test_a_new_folder_is_shown_as_a_board(base_and_head):
    base, head = base_and_head
    (head / MACHINE.slug / "s").rename(head / MACHINE.slug / "new `s`\n# evil")
    text, commands = said(base, head)
    assert [command[0] for command in commands] == ["verify", "board"]
    assert "# evil" not in text.splitlines()
    assert f"### `{MACHINE.slug}/new??s????evil`: 7 files added" in text  # six records and suite.json
    assert f"### `{MACHINE.slug}/s`: 0 files added, 0 changed, 7 removed" in text


def test_packs_are_records_too(base_and_head):
    base, head = base_and_head
    folder = head / MACHINE.slug / "s"
    list(pack(folder))
    text, commands = said(base, head)
    assert commands[1:] == [("compare", str(base / MACHINE.slug / "s"), str(folder), "--format", "markdown")]
    assert "1 files added, 0 changed, 6 removed" in text


def test_the_commands_are_effbench_s(base_and_head):
    _, head = base_and_head
    assert pull_request.effbench("verify", str(head)) == "6 records: 0 errors, 0 warnings"
    assert "no such folder" in pull_request.effbench("verify", str(head / "absent"))


GH = """#!/usr/bin/env bash
printf '%s\\n' "$*" >> "$LOG"
case "$*" in
    "pr list"*) echo "$PULL_REQUEST" ;;
    *--paginate*) printf '%s' "$EARLIER" ;;
    *) for last; do [[ "$last" == body=@* ]] && cp "${last#body=@}" "$BODY"; done; exit 0 ;;
esac
"""


def comment_with(tmp_path, text, *, pull_request="7", earlier=""):
    """Run the script against a `gh` that writes down what it is asked."""
    (tmp_path / "gh").write_text(GH)
    (tmp_path / "gh").chmod(0o755)
    if text is not None:
        (tmp_path / "comment.md").write_bytes(text)
    names = {"LOG": "log", "BODY": "body"}
    environment = {name: str(tmp_path / file) for name, file in names.items()}
    environment |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "GH_REPO": "o/n", "HEAD_SHA": "abc", "LC_ALL": "C.UTF-8"}
    environment |= {"PULL_REQUEST": pull_request, "EARLIER": earlier}
    done = subprocess.run(
        ["bash", SCRIPT, tmp_path / "comment.md"], env=environment, capture_output=True, text=True, check=True
    )
    asked = (tmp_path / "log").read_text().splitlines()
    return asked, (tmp_path / "body").read_text(errors="replace") if (tmp_path / "body").exists() else None, done.stdout


def test_a_first_comment_is_made_and_a_later_one_takes_its_place(tmp_path):
    asked, body, _ = comment_with(tmp_path, b"hello @everyone")
    assert body == "<!-- effbench board -->\nhello (at)everyone"
    assert asked[-1].startswith("api --method POST repos/o/n/issues/7/comments ")
    asked, _, _ = comment_with(tmp_path, b"again", earlier="12\n13\n")
    assert asked[-1].startswith("api --method PATCH repos/o/n/issues/comments/12 ")


def test_a_long_comment_is_cut(tmp_path):
    _, body, _ = comment_with(tmp_path, b"x" + "≤".encode() * 30_000)
    assert body.count("≤") == 19_999
    assert body.endswith("cut: the summary of the run has it all.\n")


def test_a_link_is_not_followed(tmp_path):
    (tmp_path / "secret").write_text("token")
    (tmp_path / "comment.md").symlink_to(tmp_path / "secret")
    with pytest.raises(subprocess.CalledProcessError) as failed:
        comment_with(tmp_path, None)
    assert "is not a file" in failed.value.stderr
    assert not (tmp_path / "log").exists()


def test_no_open_pull_request_means_no_comment(tmp_path):
    asked, body, output = comment_with(tmp_path, b"hello", pull_request="")
    assert len(asked) == 1
    assert body is None
    assert "no open pull request ends in abc" in output
