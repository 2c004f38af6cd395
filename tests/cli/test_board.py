"""Boards and fronts on the command line, in every format."""

import csv
import io
import json

import pytest
from typer.testing import CliRunner

from effbench.cli import app
from effbench.plugin.errors import InputError
from tests.board.test_leaderboard import SETTINGS, trials
from tests.board.test_pareto import FOUR, measured
from tests.board.test_view import moved


@pytest.fixture
def invoke(tmp_path, monkeypatch):
    """Runs a command on the folder."""
    monkeypatch.setenv("COLUMNS", "120")

    def run(command, *options):
        result = CliRunner().invoke(app, [command, str(tmp_path), *options])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


@pytest.fixture
def results(tmp_path):
    """Two lengths, on two machines."""
    for machine in ("machine", "m2"):
        folder = tmp_path / machine / "s"
        folder.mkdir(parents=True)
        (folder / "suite.json").write_text(json.dumps(SETTINGS))
        for record in trials(shapes=(64, 128), machine=machine):
            (folder / f"{record.cell_id}.r{record.round}.json").write_text(record.model_dump_json())


CHOICE = ("--by", "seq_len", "--filter", "machine == 'm2' and train_speed_ratio > 0", "--sort", "stack:desc")


@pytest.mark.usefixtures("results")
def test_choices_compose_in_every_format(invoke):
    boards = json.loads(invoke("board", "--format", "json", *CHOICE).stdout)
    assert [(board["machine"], board["slice"]) for board in boards] == [("m2", {"seq_len": "64"}), ("m2", {"seq_len": "128"})]
    assert [row["stack"] for row in boards[0]["rows"]] == ["same", "full", "fast"]
    rows = list(csv.DictReader(io.StringIO(invoke("board", "--format", "csv", *CHOICE).stdout)))
    assert [row["stack"] for row in rows] == ["same", "full", "fast"] * 2
    for format_ in ("table", "markdown"):
        text = invoke("board", "--format", format_, *CHOICE).stdout
        assert [word in text.replace("\\_", "_") for word in ("seq_len 64", "seq_len 128", "machine m2")] == [True] * 3
        assert "side by side" not in text
    assert "machines side by side" in invoke("board").stdout


def test_an_aggregate(invoke, tmp_path):
    folder = tmp_path / "machine" / "s"
    folder.mkdir(parents=True)
    (folder / "suite.json").write_text(json.dumps(SETTINGS))
    for record in [*trials(), *moved(trials(), workload="code")]:
        (folder / f"{record.cell_id}.r{record.round}.json").write_text(record.model_dump_json())
    assert "aggregate of 2 boards" in invoke("board", "--aggregate").stdout
    [board] = json.loads(invoke("board", "--aggregate", "--format", "json").stdout)
    assert board["workload"] == "code, docs"
    assert all(row["quality"] is None for row in board["rows"])


@pytest.mark.usefixtures("results")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--filter", "seq_len = 64"), "a comparison is written =="),
        (("--filter", "__import__('os').getcwd() == ''"), "a call"),
        (("--filter", "sek_len == 64"), "did you mean 'seq_len'"),
        (("--sort", "stak"), "did you mean 'stack'"),
        (("--by", "seqlen"), "did you mean 'seq_len'"),
    ],
)
def test_bad_choices_are_one_line(invoke, options, words):
    with pytest.raises(InputError, match=words) as caught:
        invoke("board", *options)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("results")
def test_a_choice_of_nothing_says_so(invoke):
    result = invoke("board", "--filter", "seq_len == 1")
    assert "no trial records chosen by the filter" in result.stderr


@pytest.fixture
def fronts(tmp_path):
    folder = tmp_path / "machine" / "s"
    folder.mkdir(parents=True)
    (folder / "suite.json").write_text(json.dumps(SETTINGS))
    for record in measured(FOUR):
        leaks = "sees later tokens" if record.cell.stack == "bad" else None
        text = record.model_copy(update={"leaks": leaks}).model_dump_json()
        (folder / f"{record.cell_id}.r{record.round}.json").write_text(text)


METRICS = ("--metrics", "train_speed, train_memory")


@pytest.mark.usefixtures("fronts")
def test_fronts_in_every_format(invoke):
    [front] = json.loads(invoke("pareto", *METRICS, "--format", "json").stdout)
    assert front["knee"] == "both"
    assert front["metrics"] == ["train_speed", "train_memory"]
    assert front["excluded"] == {"bad": "LEAKS THE FUTURE"}
    assert [row["stack"] for row in front["rows"]] == ["both", "fast", "small", "full"]
    rows = list(csv.DictReader(io.StringIO(invoke("pareto", *METRICS, "--format", "csv").stdout)))
    assert rows[-1]["dominated_by"] == "both"
    assert float(rows[0]["probability"]) == 1
    for format_ in ("table", "markdown"):
        text = invoke("pareto", *METRICS, "--format", format_).stdout
        assert "knee both" in text
        assert "`bad` is not considered: LEAKS THE FUTURE" in text.replace("\\", "")
        assert max(map(len, text.splitlines())) <= 120 or format_ == "markdown"
    assert "| both | knee |" in text


@pytest.mark.usefixtures("fronts")
def test_speed_and_quality_are_the_default(invoke):
    [front] = json.loads(invoke("pareto", "--format", "json", "--filter", "stack != 'small'").stdout)
    assert front["metrics"] == ["train.tokens_per_s", "bits_per_byte"]
    assert {row["stack"] for row in front["rows"]} == {"full", "fast", "both"}
    assert all(row["probability"] is None for row in front["rows"] if row["stack"] != "full")
    assert any("1 of 5 rows are hidden" in note for note in front["notes"])


@pytest.mark.usefixtures("fronts")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--metrics", "train_speed"), "two different metrics"),
        (("--metrics", "train_speed,memory"), "unknown metric 'memory'"),
        (("--format", "markdwon"), "did you mean 'markdown'"),
    ],
)
def test_what_is_no_front_is_one_line(invoke, options, words):
    with pytest.raises(InputError, match=words):
        invoke("pareto", *options)


@pytest.mark.usefixtures("results")
def test_boards_without_the_metrics_do_not_cost_the_others_theirs(invoke, tmp_path):
    folder = tmp_path / "machine" / "other"
    folder.mkdir()
    for record in moved(measured(FOUR, rounds=1), suite="other"):
        (folder / f"{record.cell_id}.r{record.round}.json").write_text(record.model_dump_json())
    shown = json.loads(invoke("pareto", "--metrics", "train_speed,train_memory", "--format", "json").stdout)
    assert [(front["suite"], bool(front["rows"])) for front in shown] == [("s", False), ("other", True), ("s", False)]
    assert all("no front: unknown metric 'train_memory'" in front["notes"][0] for front in shown if front["suite"] == "s")
    assert "no front" in invoke("pareto", "--metrics", "train_speed,train_memory").stdout
    assert len(invoke("pareto", "--metrics", "train_speed,train_memory", "--format", "csv").stdout.split()) >= 6
