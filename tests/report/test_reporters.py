import csv
import io
import json
import math

import pandas as pd
import pytest
from effbench_plugins.reporters import (
    CsvReporter,
    JsonReporter,
    LengthsCsvReporter,
    MarkdownReporter,
    ParetoCsvReporter,
    ScalingCsvReporter,
    TableReporter,
    WorldSizesCsvReporter,
)

from effbench.board.leaderboard import build
from effbench.board.scaling import LENGTH_COLUMNS, SCALING_COLUMNS
from effbench.board.table import columns
from effbench.board.world_sizes import columns as world_size_columns
from effbench.plugin import Summary
from effbench.plugin.text import clean, counted, human_of, in_bytes, in_seconds, markdown
from effbench.plugin.text import csv as as_csv
from tests.board import test_scaling as grown
from tests.board import test_world_sizes as spread
from tests.board.test_leaderboard import SETTINGS, board_of, trials
from tests.records import make_cell, make_record

HOSTILE = "[red]x[/red] | `a` <b> :smile: \x1b[31m\n# y"


@pytest.fixture
def boards():
    hostile = make_cell(HOSTILE, techniques=(("odd|name", {}),))
    lost = make_record(cell=hostile, status="failed", error=f"Error: {HOSTILE}", metrics={}, quality=None)
    return [board_of([*trials(), lost])]


@pytest.fixture
def narrow(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")


@pytest.mark.usefixtures("narrow")
def test_table_states_what_it_shows(boards):
    text = TableReporter().render(boards)
    head = text[:400]
    assert all(word in head for word in ("machine machine", "suite s", "tiny-llama", "docs", "rounds 3"))
    assert "2.00× [" in text
    assert "FASTER" in text
    assert "is better" in text
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.usefixtures("narrow")
def test_table_shows_hostile_names_as_they_are(boards):
    text = TableReporter().render(boards)
    assert "[red]" in text
    assert ":smile:" in text.replace("\n", "")
    assert "\x1b" not in text


@pytest.mark.usefixtures("narrow")
def test_missing_is_a_dash_never_zero(boards):
    lines = [line for line in TableReporter().render(boards).splitlines() if "0/1" in line]
    assert lines
    assert "–" in lines[0]
    assert " 0 " not in lines[0]
    assert "nan" not in TableReporter().render(boards).lower()


def sized(stack, **sizes):
    plain = {
        "checkpoint.bytes": 8000,
        "checkpoint.sparse_bytes": 8000,
        "checkpoint.bits_per_weight": 16,
        "infer.kv_cache_bytes": 512,
    }
    record = make_record(stack)
    names = {"dense": "checkpoint.bytes", "sparse": "checkpoint.sparse_bytes", "bits": "checkpoint.bits_per_weight"}
    found = plain | {names.get(key, "infer.kv_cache_bytes"): value for key, value in sizes.items()}
    units = {"checkpoint.bits_per_weight": "bit"}
    metrics = {name: Summary(median=value, unit=units.get(name, "B")) for name, value in found.items()}
    return record.model_copy(update={"metrics": record.metrics | metrics})


@pytest.mark.parametrize(
    ("sizes", "title", "shown"),
    [
        ({"sparse": 4200}, "without zeros", "4.1 KiB 0.53×"),
        ({"bits": 4.5}, "bits/weight", "| 4.5 |"),
        ({"cache": 128}, "KV cache", "128 B 0.25×"),
    ],
)
def test_what_a_technique_is_for_gets_a_column_where_it_does_something(sizes, title, shown):
    text = MarkdownReporter().render([board_of([sized("full"), sized("small", **sizes)])])
    assert title in text
    assert shown in text
    assert title not in MarkdownReporter().render([board_of([sized("full"), sized("other")])])


def test_markdown_escapes(boards):
    text = MarkdownReporter().render(boards)
    assert "<b>" not in text
    assert "\x1b" not in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    bars = {line.replace("\\|", "").count("|") for line in rows[:6]}
    assert len(bars) == 1
    assert "\n# y" not in text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("_em_ x_y_z", r"\_em\_ x_y_z"),
        ("~~gone~~ $x$", r"\~\~gone\~\~ \$x\$"),
        (r"[a](b) `c` *d* \ |", r"\[a\](b) \`c\` \*d\* \\ \|"),
        ("<b> &amp;", "&lt;b> &amp;amp;"),
    ],
)
def test_markdown_is_text(text, shown):
    assert markdown(text) == shown


@pytest.mark.parametrize("sign", ["=", "+", "-", "@", "\t=", "\r@"])
def test_no_text_is_a_formula_in_a_spreadsheet(sign):
    name = f"{sign}HYPERLINK(1)"
    text = CsvReporter().render([board_of(trials({"full": 1000, name: 500}))])
    assert {row["stack"] for row in csv.DictReader(io.StringIO(text))} == {"full", f"'{name.strip()}"}


def test_csv_keeps_counts_whole_and_numbers_negative():
    frame = pd.DataFrame({"=a": pd.array([1, None], "Int64"), "b": [-0.5, 2.0], "c": ["-x", None]})
    assert as_csv(frame) == "'=a,b,c\n1,-0.5,'-x\n,2.0,\n"


@pytest.mark.parametrize(
    ("name", "shown"),
    [("=1+1", "'=1+1"), ("+1", "'+1"), ("-1", "'-1"), ("@A1", "'@A1"), ("\t=1", "'=1"), ("\x1b]0;x\x07", "\ufffd]0;x\ufffd")],
)
def test_csv_has_neither_formulas_nor_control_sequences(name, shown):
    for reporter in (CsvReporter, ParetoCsvReporter):
        rows = csv.DictReader(io.StringIO(reporter().render([board_of(trials({"full": 1000, name: 2000}))])))
        assert {row["stack"] for row in rows} == {"full", shown}


def test_csv_has_all_columns_and_empty_fields(boards):
    rows = list(csv.DictReader(io.StringIO(CsvReporter().render(boards))))
    assert set(columns()) | {"machine", "suite", "model", "workload"} <= rows[0].keys()
    assert len(rows) == 4
    fast = next(row for row in rows if row["stack"] == "fast")
    assert float(fast["train_speed_low"]) < 2.05
    lost = next(row for row in rows if row["stack"] == clean(HOSTILE))
    assert lost["train_speed"] == ""


def test_json_parses_and_missing_is_null(boards):
    def refuse(constant):
        raise AssertionError(constant)

    found = json.loads(JsonReporter().render(boards), parse_constant=refuse)
    lost = next(row for row in found[0]["rows"] if row["stack"] == HOSTILE)
    assert lost["train_speed_ratio"] is None
    assert lost["rank"] is None
    assert math.isclose(next(row for row in found[0]["rows"] if row["stack"] == "fast")["train_speed_ratio"], 2, rel_tol=0.02)


@pytest.fixture
def long_boards():
    """Three stacks over five lengths; one has the hostile name and runs out of memory at the longest."""
    costs = {"full": grown.quadratic, "lean": grown.linear, HOSTILE: grown.up_to(grown.linear, 4096)}
    return [grown.board_of(grown.trials(costs))]


def cells_of(text, title):
    """The rows of the Markdown table whose first title this is, by their first cell."""
    lines = iter(text.splitlines())
    next(line for line in lines if line.startswith(f"| {title} |"))
    next(lines)
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in iter(lambda: next(lines), "")]
    return {first: rest for first, *rest in rows}


@pytest.mark.usefixtures("narrow")
def test_growth_with_the_length_fits_into_the_terminal(long_boards):
    text = TableReporter().render(long_boards)
    for title in ("cost grows as", "as cheap from", "train speed at", "decode speed at", "infer memory at"):
        assert f" {title}" in text
    assert max(map(len, text.splitlines())) <= 120
    assert "nan" not in text.lower()
    assert "\x1b" not in text


def test_growth_in_markdown(long_boards):
    text = MarkdownReporter().render(long_boards)
    assert cells_of(text, "cost grows as")["lean"][0].endswith(" n")
    assert cells_of(text, "cost grows as")["full"][0].endswith(" n²")
    assert cells_of(text, "as cheap from")["full"] == ["baseline"] * 5
    speeds = cells_of(text, "train speed at")
    shown = [float(cell.partition("×")[0]) for cell in speeds["lean"]]
    assert shown == pytest.approx([n / 4000 for n in grown.LENGTHS], rel=0.1)
    assert all("[" in cell for cell in speeds["lean"])
    assert speeds["full"][-1].endswith(" s")
    [hostile] = [cells for stack, cells in speeds.items() if "red" in stack]
    assert hostile[-1] == "–"
    assert "k in cost ~ length^k" in text


def test_boards_of_few_lengths_show_nothing_of_growth(boards):
    for reporter in (TableReporter, MarkdownReporter):
        text = reporter().render(boards)
        assert "grows" not in text
        assert "cheap from" not in text
    assert json.loads(JsonReporter().render(boards))[0]["scaling"] is None
    assert len(ScalingCsvReporter().render(boards).splitlines()) == 1


def test_json_and_csv_have_growth_and_ratios_by_length(long_boards):
    [board] = json.loads(JsonReporter().render(long_boards))
    assert set(SCALING_COLUMNS) == set(board["scaling"][0])
    assert set(LENGTH_COLUMNS) == set(board["by_length"][0])
    baseline = [row for row in board["scaling"] if row["stack"] == "full"]
    assert [row["crossover"] for row in baseline] == [None] * 5
    for reporter, columns_, frame in (
        (ScalingCsvReporter, SCALING_COLUMNS, long_boards[0].scaling),
        (LengthsCsvReporter, LENGTH_COLUMNS, long_boards[0].by_length),
    ):
        rows = list(csv.DictReader(io.StringIO(reporter().render(long_boards))))
        assert set(columns_) | {"machine", "suite", "model", "workload"} <= rows[0].keys()
        assert len(rows) == len(frame)


@pytest.fixture
def spread_boards(tmp_path):
    """Data parallelism at 1, 2 and 4 ranks on two cores, a stack of the hostile name and two dimensions, one out of memory."""
    (tmp_path / "s").mkdir()
    cells = [*spread.ddp_cells(), (spread.cell_of(HOSTILE, 4, ["ddp", "pipeline"]), 1200)]
    own = {"pipeline__waits": 3, "train__exposed_communication_share": 0.125, "train__peak_memory_bytes": 2**20}
    records = [spread.of_rank(r, **own) if r.cell.stack == HOSTILE else r for r in spread.trials(cells)]
    lost = make_record(cell=spread.cell_of("fsdp", 2, ["fsdp"]), status="oom", error="no memory", metrics={}, quality=None)
    return [spread.board_of([*records, lost], tmp_path / "s", cores=2)]


def test_world_sizes_in_markdown(spread_boards):
    text = MarkdownReporter().render(spread_boards)
    lines = [line for line in text.splitlines() if line.startswith(("| ddp |", "| full |", "| fsdp |"))]
    speeds = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.count("|") == 11]
    training = {(cells[0], cells[1]): cells[2:] for cells in speeds[:5]}
    assert training["full", "1"][3:] == ["1× (baseline)", "full", "1.00", "1.00", "ok"]
    assert training["ddp", "4"][0] == "ddp 4"
    assert training["ddp", "4"][3].startswith("1.60× ")
    assert training["ddp", "4"][3].endswith(" FASTER")
    assert training["ddp", "4"][4:] == ["full", "0.40", "0.80", "ok"]
    assert training["fsdp", "2"][1:] == ["–"] * 6 + ["1 oom"]
    assert "ddp 2 × pipeline 2" in text
    assert "12.5 %" in text
    assert "pipeline.waits" in text
    assert "nothing is ranked" in text


def test_per_core_is_left_out_where_each_rank_has_cores_of_its_own(tmp_path):
    (tmp_path / "s").mkdir()
    text = MarkdownReporter().render([spread.board_of(spread.trials(spread.ddp_cells()), tmp_path / "s", cores=8)])
    assert "efficiency |" in text
    assert "per core |" not in text
    assert "spread over |" not in text


@pytest.mark.usefixtures("narrow")
def test_world_sizes_fit_into_the_terminal_and_names_stay_text(spread_boards):
    text = TableReporter().render(spread_boards)
    assert max(map(len, text.splitlines())) <= 120
    assert "nan" not in text.lower()
    assert "\x1b" not in text
    markdown = MarkdownReporter().render(spread_boards)
    assert "<b>" not in markdown
    assert "\n# y" not in markdown


def test_json_and_csv_have_all_world_sizes(spread_boards):
    [board] = json.loads(JsonReporter().render(spread_boards))
    assert [*board["world_sizes"][0]] == world_size_columns(["pipeline.waits"])
    assert next(row for row in board["world_sizes"] if row["stack"] == "fsdp")["train_speed_ratio"] is None
    rows = list(csv.DictReader(io.StringIO(WorldSizesCsvReporter().render(spread_boards))))
    assert {*world_size_columns(["pipeline.waits"]), "machine", "suite"} <= rows[0].keys()
    assert [(row["stack"], row["world_size"]) for row in rows if row["stack"] != clean(HOSTILE)] == [
        ("full", "1"), ("ddp", "1"), ("ddp", "2"), ("ddp", "4"), ("fsdp", "2")
    ]  # fmt: skip


def test_a_single_rank_shows_nothing_of_world_sizes(boards):
    assert "world sizes" not in MarkdownReporter().render(boards)
    assert json.loads(JsonReporter().render(boards))[0]["world_sizes"] is None
    assert len(WorldSizesCsvReporter().render(boards).splitlines()) == 1


def with_loss(record):
    loss = {"full": 2.0, "fast": 2.5, "same": 2.0}[record.cell.stack]
    found = {
        "train.final_loss": Summary(median=loss + 0.001 * record.round, unit=""),
        "odd.time_s": Summary(median=3, unit="s"),
    }
    return record.model_copy(update={"metrics": record.metrics | found})


def test_metrics_that_the_suite_asks_for_are_columns():
    records = list(map(with_loss, trials()))
    text = MarkdownReporter().render([board_of(records)])
    assert "final_loss" not in text
    board = board_of(records, SETTINGS | {"columns": ["train.final_loss", "odd.time_s"]})
    cells = cells_of(MarkdownReporter().render([board]), "stack | train.final_loss | odd.time_s")
    assert cells["fast"][0].startswith("2.5 1.25×")
    assert cells["fast"][0].endswith("HIGHER")
    assert cells["same"] == [r"2 1.00× \[1.00, 1.00\] SAME", r"3 s 1.00× \[1.00, 1.00\] SAME"]
    assert cells["full"] == ["2", "3 s"]
    rows = {row["stack"]: row for row in csv.DictReader(io.StringIO(CsvReporter().render([board_of(records), board])))}
    assert rows["fast"]["loss_verdict"] == "HIGHER"
    assert rows["fast"]["odd.time_s_verdict"] == "SAME"


def test_a_count_of_zero_is_shown_and_has_no_ratio():
    def counted(record):
        found = {"odd.skips": Summary(median=float(record.round == 1) if record.cell.stack == "same" else 0.0, unit="")}
        return record if record.cell.stack == "full" else record.model_copy(update={"metrics": record.metrics | found})

    board = board_of(list(map(counted, trials())), SETTINGS | {"columns": ["odd.skips"]})
    cells = cells_of(MarkdownReporter().render([board]), "stack | odd.skips")
    assert (cells["fast"], cells["full"]) == (["0"], ["–"])
    assert float(cells["same"][0]) == pytest.approx(1 / max(board.rounds), abs=0.01)


@pytest.mark.parametrize(
    ("metric", "shown"),
    [
        ("train.peak_memory_bytes", "2 KiB"),
        ("checkpoint.bytes", "2 KiB"),
        ("train.step_s", "2048 s"),
        ("train.tokens_per_s", "2.05K"),
        ("train.communication_share", "204800 %"),
    ],
)
def test_the_name_of_a_metric_says_its_unit(metric, shown):
    assert human_of(metric)(2048) == shown


@pytest.mark.parametrize(
    ("human", "value", "shown"),
    [
        (in_bytes, 1010 * 1024, "1010 KiB"),
        (in_bytes, 1023.6 * 1024, "1 MiB"),
        (in_bytes, 1500 * 2**40, "1500 TiB"),
        (in_seconds, 0.9996, "1 s"),
        (in_seconds, 0.9994e-3, "999 µs"),
        (in_seconds, 999.7, "1000 s"),
        (in_seconds, 0.0123, "12.3 ms"),
        (counted, 999.7, "1K"),
        (counted, 1_540_000, "1.54M"),
    ],
)
def test_figures_have_no_exponents(human, value, shown):
    assert human(value) == shown


def test_no_boards_render(tmp_path):
    boards = build(tmp_path, SETTINGS)
    assert json.loads(JsonReporter().render(boards)) == []
    assert CsvReporter().render(boards).startswith("machine,")
    assert TableReporter().render(boards) == ""
    assert MarkdownReporter().render(boards)
