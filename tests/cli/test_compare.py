import csv
import io
import json
import math
import re

import pytest
from typer.testing import CliRunner

from effbench.board.compare import COLUMNS, compare_frames
from effbench.board.frame import tidy
from effbench.cli import app
from effbench.cli.compare import fraction
from effbench.cli.comparison_text import GITHUB_LIMIT, RENDER, markdown
from effbench.plugin import Summary
from effbench.plugin.errors import InputError
from effbench.store.record import QualityScores
from tests.board.test_compare import SPEED, frame_of, later, lost, side
from tests.records import make_cell, make_record

HOSTILE = "[x](http://a.b) | `a` <b> @you #1 :smile: \x1b[31m\n# y"


def write(folder, records):
    folder.mkdir(parents=True)
    for record in records:
        (folder / f"{record.cell_id}.r{record.round}.json").write_text(record.model_dump_json(exclude_none=True))
    return folder


@pytest.fixture
def old(tmp_path):
    return write(tmp_path / "old", side({"full": 1000, "lora": 2000}))


@pytest.fixture
def slower(tmp_path):
    return write(tmp_path / "slower", later({"full": 1000, "lora": 1600}))


def run(*arguments):
    return CliRunner().invoke(app, ["compare", *map(str, arguments)], env={"COLUMNS": "140"})


def test_a_regression_is_shown_and_fails_only_where_it_is_asked_to(old, slower):
    shown = run(old, slower)
    assert shown.exit_code == 0
    assert shown.stdout.startswith("2 cells compared: 0 FAILS, 3 SLOWER, 0 WORSE, 0 LARGER")
    assert "lora" in shown.stdout
    failed = run(old, slower, "--fail-on-slower", "5%")
    assert failed.exit_code == 1
    assert failed.stderr == "effbench: regressions: 3 SLOWER\n"
    assert run(old, slower, "--fail-on-slower", "40%").exit_code == 0
    assert run(old, slower, "--fail-on-worse", "1%").exit_code == 0
    assert run(slower, old, "--fail-on-slower", "5%").exit_code == 0


@pytest.mark.parametrize("option", ["--fail-on-slower", "--fail-on-worse"])
def test_what_fails_now_fails_either_check(old, tmp_path, option):
    new = write(tmp_path / "new", [*later({"full": 1000}), *lost("lora", "oom")])
    assert run(old, new, option, "5%").exit_code == 1
    assert run(old, new).exit_code == 0


def test_a_check_of_nothing_is_no_pass(old, tmp_path):
    new = write(tmp_path / "new", later({"full": 1000}, cell=make_cell(steps=8)))
    assert run(old, new).exit_code == 0
    assert "nothing was checked" in str(run(old, new, "--fail-on-slower", "5%").exception)
    (tmp_path / "empty").mkdir()
    assert "no trial records" in str(run(old, tmp_path / "empty").exception)


def test_a_single_record_is_a_side(old):
    file = min(old.glob("*.json"))
    assert run(file, old).stdout.startswith("1 cell compared")


@pytest.mark.parametrize(
    ("text", "value"), [("5%", 0.05), ("2.5 %", 0.025), ("0.05", 0.05), (".1", 0.1), ("0", 0.0), ("0%", 0)]
)
def test_margins(text, value):
    assert fraction("--x", text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["5", "1", "5%%", "-5%", "nan", "1e-2", "", "five", "0,05", "5 percent", "٥%"])
def test_margins_that_could_mean_two_things_are_refused(text):
    with pytest.raises(InputError, match=r"--x.*5%.*0\.05"):
        fraction("--x", text)


def test_an_unknown_format_is_one_line(old):
    assert "table, markdown, json, csv" in str(run(old, old, "--format", "xml").exception)


def test_json_and_csv_have_every_row(old, slower):
    def refuse(constant):
        raise AssertionError(constant)

    content = json.loads(run(old, slower, "--format", "json").stdout, parse_constant=refuse)
    rows = list(csv.DictReader(io.StringIO(run(old, slower, "--format", "csv").stdout)))
    assert list(rows[0]) == COLUMNS
    assert len(rows) == len(content["rows"]) == sum(content["verdicts"].values())
    assert content["verdicts"]["SLOWER"] == 3
    assert content["compared"] == 2
    relative = json.loads(run(old, slower, "--format", "json", "--relative").stdout)
    assert relative["relative"]
    assert len(relative["rows"]) == len(rows) - 3  # the baseline's own speeds


def hostile():
    cell = make_cell(HOSTILE, workload=HOSTILE)
    new = [*later({"full": 1000}), *later({HOSTILE: 800}, cell=cell), *lost(HOSTILE, "oom", error=f"Error {HOSTILE}")]
    return compare_frames(frame_of([*side({HOSTILE: 1000}, cell=cell), *side({HOSTILE: 1000})]), frame_of(new))


def test_markdown_has_the_summary_first_and_folds_all_but_regressions(old, slower):
    text = run(old, slower, "--format", "markdown").stdout
    first, *rest = text.splitlines()
    assert first.startswith("**effbench compare**: 2 cells compared: 0 FAILS, 3 SLOWER")
    body = "\n".join(rest)
    unfolded = re.sub(r"<details>.*?</details>", "", body, flags=re.S)
    assert unfolded.count("| SLOWER |") == 3
    assert "| SAME |" not in unfolded
    assert "| SAME |" in body
    assert body.count("<details>") == body.count("</details>") > 1


def test_markdown_escapes_what_records_say():
    text = markdown(hostile())
    assert "FAILS" in text
    outside = re.sub(r"<code>.*?</code>", "", text)
    for marks in ("<b>", "@you", "](", "`a`", "\x1b", "http:", "\n# y", ":smile:"):
        assert marks not in text
    assert "&#64;" not in outside
    assert "&#35;" not in outside
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows} <= {9, 5}


def test_markdown_fits_into_a_comment():
    stacks = {f"stack-{i}-{'x' * 60}": 1000 for i in range(150)}
    old = list(side(stacks, rounds=3))
    found = compare_frames(frame_of(old), frame_of([*later(dict.fromkeys(list(stacks)[:90], 500), rounds=3, noise=0.001)]))
    text = markdown(found)
    assert 0.7 * GITHUB_LIMIT < len(text) <= GITHUB_LIMIT
    assert re.search(r"… and \d+ more, left out", text)
    assert text.count("<details>") == text.count("</details>")
    assert "Not compared (60)" in text
    assert text.index("### Regressions") < text.index("<details>")


def test_a_terminal_gets_names_as_they_are(tmp_path):
    from effbench.cli.comparison_text import table

    text = table(hostile())
    assert "\x1b" not in text
    assert "FAILS" in text


@pytest.mark.parametrize("value", [math.inf, math.nan, 0.0, -1.0, 1e300, 1e-300])
def test_figures_of_no_machine_do_no_harm(value):
    """Records may come from anyone: here with one id for two cells, and with values that nobody measured."""

    def odd(session, value):
        for number, seq_len in [(number, seq_len) for number in (1, 2, 3) for seq_len in (64, 128)]:
            record = make_record(cell=make_cell(seq_len=seq_len), round_number=number, session=session, machine="../..")
            counts = {"parameters.trainable": Summary(median=seq_len - 64, unit=""), SPEED: Summary(median=value, unit="")}
            scores = QualityScores(scores={"bits_per_byte": value, "|x": value - 1}, n=1)
            yield record.model_copy(update={"cell_id": "x", "metrics": record.metrics | counts, "quality": scores})

    for pair in ((value, 1.0), (1e-300, value), (value, 1e300)):
        for relative in (False, True):
            frames = (frame_of(odd(*side)) for side in zip("ab", pair, strict=True))
            found = compare_frames(*frames, relative=relative)
            assert all(render(found) for render in RENDER.values())


def test_frames_of_nothing_compare_as_nothing():
    assert compare_frames(tidy([]), frame_of(side({"full": 1}))).compared == 0
