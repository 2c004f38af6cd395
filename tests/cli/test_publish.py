import json
import re
import sys
from pathlib import Path

import pytest
from effbench_plugins.plots.style import mark_of_plot
from typer.testing import CliRunner

from effbench.cli import app
from effbench.plugin import InputError, Reporter
from effbench.plugin.catalog import Catalog
from effbench.publish.folder import MANIFEST
from tests.board.test_leaderboard import trials
from tests.records import make_cell
from tests.verify import submission

ROOT = Path(__file__).parents[2]
BEGIN, END = "<!-- effbench:board -->", "<!-- /effbench:board -->"
QUICK = ("--format", "markdown", "--format", "csv")


def put(results, suite, speeds, machine="machine"):
    """Records of one suite, as a run leaves them."""
    folder = results / machine / suite
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"baseline": "full", "ranking": {"by": "train.tokens_per_s"}}
    (folder / "suite.json").write_text(json.dumps(settings))
    for record in trials(speeds):
        cell = make_cell(**(record.cell.model_dump() | {"suite": suite, "facts": record.cell.facts}))
        own = record.model_copy(update={"cell": cell, "cell_id": cell.id, "machine": machine})
        (folder / f"{cell.id}.r{record.round}.json").write_text(own.model_dump_json(exclude_none=True))


def sketched(plot):
    """In place of drawing, which takes most of the time: files of the same marks."""
    mark = mark_of_plot(plot).encode()
    return {"svg": b"<svg>" + mark, "png": b"PNG " + mark}


@pytest.fixture(autouse=True)
def _sketches(monkeypatch):
    monkeypatch.setattr("effbench_plugins.plots.style.drawn", sketched)


@pytest.fixture
def results(tmp_path):
    put(tmp_path / "results", "alpha", {"full": 1000, "fast": 2000})
    put(tmp_path / "results", "beta", {"full": 1000, "other": 1500})
    return tmp_path / "results"


def publish(*arguments, code=0, unverified=("--unverified",)):
    """Made-up records would not pass `effbench verify`."""
    done = CliRunner().invoke(app, ["publish", *map(str, arguments), *unverified])
    if code == 2:
        assert isinstance(done.exception, InputError), done.output
        assert "\n" not in str(done.exception)
        return str(done.exception)
    assert done.exit_code == code, (done.output, done.exception)
    return done.output


def names(folder):
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def test_every_format_is_written_and_listed(results, tmp_path):
    out = publish(results, "--to", tmp_path / "site")
    found = names(tmp_path / "site")
    for name in (
        "LEADERBOARD.md",
        "leaderboard.csv",
        "leaderboard.json",
        "leaderboard.tex",
        "leaderboard.parquet",
        "trials.parquet",
    ):
        assert name in found
        assert name in out
    plots = {name for name in found if name.startswith("plots/machine/")}
    assert {name.split("/")[2] for name in plots} == {"alpha", "beta"}
    assert f"{len(plots)} files" in out
    assert json.loads((tmp_path / "site" / MANIFEST).read_text())["files"] == sorted(found - {MANIFEST})
    assert "up to date" in publish(results, "--to", tmp_path / "site", "--check")


def test_publishing_imports_no_torch(results, tmp_path):
    before = "torch" in sys.modules
    publish(results, "--to", tmp_path / "site", *QUICK)
    assert ("torch" in sys.modules) == before


def test_what_only_an_earlier_publish_wrote_is_removed_and_nothing_else(results, tmp_path):
    site = tmp_path / "site"
    publish(results, "--to", site, *QUICK, "--format", "latex")
    (site / "mine.tex").write_text("kept")
    out = publish(results, "--to", site, *QUICK)
    assert names(site) == {"LEADERBOARD.md", "leaderboard.csv", "mine.tex", MANIFEST}
    assert "removed" in out
    assert "leaderboard.tex" in out


def test_check_names_what_is_stale_and_writes_nothing(results, tmp_path):
    site = tmp_path / "site"
    publish(results, "--to", site, *QUICK, "--format", "plots", "--format", "parquet")
    before = {name: (site / name).read_bytes() for name in names(site)}
    put(results, "alpha", {"full": 1000, "fast": 3000})
    out = publish(results, "--to", site, *QUICK, "--format", "plots", "--format", "parquet", "--check", code=1)
    assert "LEADERBOARD.md shows other results" in out
    assert "trials.parquet shows other results" in out
    assert re.search(r"plots/machine/alpha/.*train-speed.svg shows other results", out)
    assert "beta" not in out
    assert {name: (site / name).read_bytes() for name in names(site)} == before


def test_check_tells_missing_files_and_such_that_are_left_over(results, tmp_path):
    site = tmp_path / "site"
    publish(results, "--to", site, *QUICK, "--format", "latex")
    (site / "leaderboard.csv").unlink()
    out = publish(results, "--to", site, *QUICK, "--check", code=1)
    assert "leaderboard.csv is missing" in out
    assert "leaderboard.tex is left over" in out
    assert (site / "leaderboard.tex").exists()


def test_plots_that_show_the_same_are_not_stale_whatever_drew_them(results, tmp_path):
    site = tmp_path / "site"
    publish(results, "--to", site, "--format", "plots")
    plot = next(site.rglob("*.png"))
    other = plot.read_bytes() + b"another version of matplotlib"
    plot.write_bytes(other)
    publish(results, "--to", site, "--format", "plots", "--check")
    publish(results, "--to", site, "--format", "plots")
    assert plot.read_bytes() == other


def test_two_formats_that_write_the_same_file_are_an_error(results, tmp_path, monkeypatch):
    class First(Reporter):
        name = "first"

        def files(self, boards):
            return {"x.txt": b""}

    class Second(First):
        name = "second"

    catalog = Catalog()
    for reporter in (First, Second):
        catalog.reporters.add(reporter, "test")
    monkeypatch.setattr("effbench.plugin.discovery.discover", lambda: catalog)
    message = publish(results, "--to", tmp_path / "site", code=2)
    assert "'first'" in message
    assert "'second'" in message


@pytest.fixture
def readme(tmp_path):
    file = tmp_path / "docs" / "README.md"
    file.parent.mkdir()
    file.write_bytes(f"# Mine \t\r\n{BEGIN}\nold\n{END}\r\ntail é without newline".encode())
    return file


def test_the_readme_shows_one_suite_and_a_plot_by_a_relative_link(results, tmp_path, readme):
    arguments = (results, "--to", tmp_path / "site", *QUICK, "--format", "plots", "--readme", readme)
    out = publish(*arguments, "--readme-suite", "beta", "--readme-plot", "quality-train-speed")
    text = readme.read_bytes().decode()
    before, rest = text.split(BEGIN)
    block, after = rest.split(END)
    assert before == "# Mine \t\r\n"
    assert after == "\r\ntail é without newline"
    assert "## beta: tiny-llama on docs" in block
    assert "alpha" not in block
    assert "# Leaderboard" not in block
    [link] = re.findall(r"!\[.*\]\((.*)\)", block)
    assert link.startswith("../site/plots/machine/beta/")
    assert (readme.parent / link).resolve().is_file()
    assert "block updated" in out
    assert "block updated" not in publish(*arguments, "--readme-suite", "beta", "--readme-plot", "quality-train-speed")


def test_check_covers_the_readme(results, tmp_path, readme):
    arguments = (results, "--to", tmp_path / "site", *QUICK, "--readme", readme)
    publish(*arguments)
    publish(*arguments, "--check")
    stale = readme.read_text().replace("fast", "quick")
    readme.write_text(stale)
    assert "README.md: its block shows other results" in publish(*arguments, "--check", code=1)
    assert readme.read_text() == stale


@pytest.mark.parametrize("text", ["none", BEGIN, END, f"{END}\n{BEGIN}", f"{BEGIN}{BEGIN}{END}", f"{BEGIN}{END}{END}"])
def test_without_both_markers_nothing_is_written(results, tmp_path, readme, text):
    readme.write_text(text)
    message = publish(results, "--to", tmp_path / "site", *QUICK, "--readme", readme, code=2)
    assert BEGIN in message
    assert END in message
    assert readme.read_text() == text
    assert not (tmp_path / "site").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--format", "markdwn"], "did you mean 'markdown'"),
        (["--readme-suite", "alpha"], "--readme FILE"),
        (["--readme", "missing.md"], "cannot be read"),
        (["--check", "--hub", "a/b"], "--hub"),
        (["--hub", "name"], "ORG/NAME"),
    ],
)
def test_impossible_options_are_one_clear_line(results, tmp_path, arguments, words):
    assert words in publish(results, "--to", tmp_path / "site", *arguments, code=2)
    assert not (tmp_path / "site").exists()


def test_an_unknown_suite_or_plot_is_told_with_what_there_is(results, tmp_path, readme):
    arguments = (results, "--to", tmp_path / "site", *QUICK, "--format", "plots", "--readme", readme)
    assert "did you mean 'alpha'" in publish(*arguments, "--readme-suite", "alpah", code=2)
    message = publish(*arguments, "--readme-plot", "compression", code=2)
    assert "tiny-llama-on-docs-quality-train-speed" in message
    no_plots = publish(*arguments[:3], *QUICK, "--readme", readme, "--readme-plot", "compression", code=2)
    assert "is `plots` among the formats?" in no_plots


def test_no_records_are_an_error_and_a_file_is_no_folder(results, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "nothing to publish" in publish(tmp_path / "empty", "--to", tmp_path / "site", code=2)
    (tmp_path / "file").write_text("")
    assert "is a file" in publish(results, "--to", tmp_path / "file", *QUICK, code=2)


def test_what_would_be_taken_for_records_is_not_written_among_them(results, tmp_path):
    for target in (results, results / "machine" / "site"):
        told = publish(results, "--to", target, *QUICK, "--format", "json", "--format", "parquet", code=2)
        assert "leaderboard.json, leaderboard.parquet, trials.parquet would be taken for records" in told
        assert not (target / MANIFEST).exists()
    publish(results, "--to", results, *QUICK)
    publish(results, "--to", tmp_path, *QUICK, "--format", "json")


def test_boards_of_several_machines_are_published_in_every_format(results, tmp_path):
    put(results, "alpha", {"full": 1000, "fast": 2000}, machine="other")
    publish(results, "--to", tmp_path / "site")
    assert {"leaderboard.json", "machines.json"} <= names(tmp_path / "site")
    assert "pytest-benchmark.json" not in names(tmp_path / "site")


def test_records_with_errors_are_not_published(tmp_path):
    folder = submission.write(tmp_path)
    good = ("--to", tmp_path / "site", "--format", "csv")
    publish(folder, *good, unverified=())
    submission.edit(submission.record_file(folder), lambda content: content.update(seed=7))
    told = publish(folder, "--to", tmp_path / "other", "--format", "csv", unverified=(), code=2)
    assert "1 error in the records" in told
    assert not (tmp_path / "other").exists()
    publish(folder, *good)


COMMANDS = re.findall(r"^\t\$\(BIN\)/effbench publish (.*)$", (ROOT / "Makefile").read_text(), re.M)


@pytest.mark.parametrize("command", COMMANDS)
def test_what_the_repository_shows_is_that_of_its_records(command, monkeypatch):
    """`make boards` writes it."""
    monkeypatch.chdir(ROOT)
    arguments = [str(found) for part in command.split() for found in sorted(ROOT.glob(part)) or [part]]
    assert "up to date" in publish(*arguments, "--check", unverified=())


def test_help_has_examples():
    assert "effbench publish results --to site" in publish("--help")


def test_the_text_table_is_as_wide_everywhere(results, tmp_path, monkeypatch):
    site = tmp_path / "site"
    monkeypatch.setenv("COLUMNS", "60")
    publish(results, "--to", site, "--format", "table")
    monkeypatch.setenv("COLUMNS", "200")
    publish(results, "--to", site, "--format", "table", "--check")
