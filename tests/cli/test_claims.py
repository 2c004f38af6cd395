"""`effbench claims`, and what its reporters write."""

import csv
import io
import json

import pytest
from typer.testing import CliRunner

from effbench.cli import app
from effbench.cli.run import show
from effbench.plan.claim import Claim
from effbench.plugin import InputError
from tests.board.test_leaderboard import SETTINGS, trials

HOSTILE = "[red]x[/red] | `a` <b> :smile: \x1b[31m\n# y"
TRUE = Claim(source="A 2020", says="fast is fast", stack="fast", metric="train.tokens_per_s", relation="better than full")
FALSE = TRUE.model_copy(update={"says": HOSTILE, "relation": "ratio to baseline above", "value": 3.0})


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Records of a suite `s`, with a claim that holds and one that does not."""
    monkeypatch.setenv("COLUMNS", "120")
    folder = tmp_path / "results" / "machine" / "s"
    folder.mkdir(parents=True)
    claims = [TRUE.model_dump(mode="json"), FALSE.model_dump(mode="json")]
    (folder / "suite.json").write_text(json.dumps(SETTINGS | {"claims": claims}))
    for record in trials():
        (folder / f"{record.cell_id}.r{record.round}.json").write_text(record.model_dump_json())
    return tmp_path / "results"


@pytest.fixture
def newer(tmp_path):
    """A suite `s` with other claims than those beside the records."""
    text = 'name = "s"\nbaseline = "full"\nmodels = ["m"]\nworkloads = ["w"]\n[stacks]\nfull = []\nsame = []\n[[claims]]\n'
    text += 'source = "B 2021"\nsays = "same is slower"\nstack = "same"\nmetric = "train.tokens_per_s"\n'
    file = tmp_path / "newer.toml"
    file.write_text(text + 'relation = "ratio to baseline below"\nvalue = 0.9\n')
    return file


def claims(*arguments):
    done = CliRunner().invoke(app, ["claims", *map(str, arguments)])
    if isinstance(done.exception, InputError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done


def test_a_refuted_claim_is_no_failure_and_counts_come_first(results):
    lines = claims(results).stdout.splitlines()
    assert lines[0] == "verdicts on claims: 1 SUPPORTED, 1 REFUTED"
    text = "\n".join(lines)
    assert text.index("s on machine") < text.index("fast is fast")
    assert "claimed above 1" in text.replace("\n", " ")
    assert "\x1b" not in text
    assert "[red]" in text
    assert max(map(len, lines)) <= 120


def test_markdown_escapes_what_records_say(results):
    text = claims(results, "--format", "markdown").stdout
    assert "## s on machine" in text
    assert "| SUPPORTED | fast is fast | " in text
    assert "\\[red\\]x\\[/red\\] \\| \\`a\\` &lt;b> :smile:" in text
    assert "\n# y" not in text


def test_csv_and_json_have_every_number(results):
    rows = list(csv.DictReader(io.StringIO(claims(results, "--format", "csv").stdout)))
    entries = json.loads(claims(results, "--format", "json").stdout)
    for first in (rows[0], entries[0]):
        assert (first["verdict"], first["source"], first["stack"]) == ("SUPPORTED", "A 2020", "fast")
        assert float(first["low"]) < float(first["estimate"]) < float(first["high"])
    assert rows[0]["value"] == ""
    assert (entries[0]["value"], entries[0]["where"], len(entries[0]["cells"])) == (None, {}, 1)


def test_a_suite_that_is_named_judges_instead_of_the_one_beside_the_records(results, newer):
    text = claims(results, "--suite", newer).stdout
    assert text.startswith("verdicts on claims: 1 REFUTED")
    assert "fast is fast" not in text


def test_other_claims_of_a_standard_suite_are_noted(results, newer, monkeypatch):
    monkeypatch.setattr("effbench.plan.suite.standard_suites", lambda: [newer.rename(newer.with_name("s.toml"))])
    done = claims(results)
    assert "judge by them: --suite s" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--format", "tabel"], "unknown format 'tabel': did you mean 'table'"),
        (["--suite", "pefd"], "unknown suite 'pefd': did you mean 'peft'"),
        (["--suite", "peft"], "no records of suite peft there; records are of: s"),
    ],
)
def test_bad_input_is_one_line(results, arguments, words):
    with pytest.raises(InputError) as caught:
        claims(results, *arguments)
    assert str(caught.value).startswith(words)
    assert "\n" not in str(caught.value)


def test_nothing_to_judge_is_said(tmp_path):
    (tmp_path / "empty").mkdir()
    done = claims(tmp_path / "empty")
    assert "no trial records" in done.stderr
    assert done.stdout.startswith("no claims in the suites of these records")


def test_help_has_examples():
    text = claims("--help").stdout
    assert "effbench claims effbench-results" in text


def test_a_run_leaves_claims_beside_its_records_where_there_are_some(results, capsys):
    folder = results / "machine" / "s"
    show(folder, results)
    assert "CLAIMS.md" in capsys.readouterr().out
    assert (folder / "CLAIMS.md").read_text().startswith("# Published claims\n\n## verdicts on claims: 1 SUPPORTED")
    assert len((folder / "claims.csv").read_text().splitlines()) == 3
