"""`effbench verify` as it is typed, and on the records of this repository."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from effbench.cli import app
from effbench.plugin.discovery import discover
from effbench.verify.finding import SEVERITIES, Finding
from effbench.verify.verify import verify
from tests.verify.submission import edit, record_file, write

ROOT = Path(__file__).parents[2]


def run(*arguments):
    return CliRunner().invoke(app, ["verify", *map(str, arguments)])


def test_exit_status_and_words(tmp_path):
    folder = write(tmp_path)
    assert run(tmp_path).exit_code == 0
    edit(record_file(folder), lambda content: content.update(git=None))
    done = run(tmp_path)
    assert done.exit_code == 0
    assert done.output.splitlines()[-1] == "6 records: 0 errors, 1 warning"
    edit(record_file(folder), lambda content: content.update(seed=1))
    done = run(tmp_path)
    assert done.exit_code == 1
    assert done.output.startswith("error seed: the seed is not the suite's for this round\n      ")
    assert "1, expected 1000" in done.output


def test_json_has_every_finding(tmp_path):
    folder = write(tmp_path)
    for number in (1, 2, 3):
        edit(record_file(folder, number=number), lambda content: content.update(git=None))
    found = json.loads(run(tmp_path, "--json").output)
    assert {key: found[key] for key in ("records", "errors", "warnings")} == {"records": 6, "errors": 0, "warnings": 3}
    assert found["findings"][0] == {
        "severity": "warning",
        "code": "git",
        "what": "no commit is named: nobody can look up the code",
        "file": record_file(folder).relative_to(tmp_path).as_posix(),
        "detail": "",
    }


def test_nothing_is_no_submission_without_errors(tmp_path):
    (tmp_path / "leaderboard.csv").write_text("machine\n")
    for path in (tmp_path, tmp_path / "leaderboard.csv"):
        assert str(run(path).exception) == f"{path}: no trial records there"


@pytest.mark.parametrize(
    "suite", sorted(path.parent for path in (ROOT / "results").glob("*/*/suite.json")), ids=lambda path: path.name
)
def test_the_records_of_this_repository_have_no_errors(suite):
    """Nor any false alarm of copies, though counts, bytes and scores of many are equal."""
    report = verify(suite, discover())
    assert [finding for finding in report.findings if finding.severity == "error"] == []
    assert report.records > 0


def test_the_page_has_every_check_with_its_severity():
    lines = (ROOT / "docs" / "verifying.md").read_text(encoding="utf-8").splitlines()
    documented = [tuple(cell.strip(" `") for cell in line.split("|")[1:3]) for line in lines if line.startswith("| `")]
    assert documented == list(SEVERITIES.items())


def test_a_finding_has_a_known_code():
    with pytest.raises(KeyError):
        Finding("unheard-of", "what", "file")
