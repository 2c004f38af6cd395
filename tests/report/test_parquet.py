import io

import pandas as pd
import pytest
from effbench_plugins.reporters import CsvReporter, ParquetReporter
from effbench_plugins.reporters.parquet import rows_frame, trials_frame

from effbench.plugin.mark import shows_the_same
from tests.board import test_world_sizes as spread
from tests.board.test_leaderboard import SETTINGS, board_of, trials
from tests.records import make_cell, make_record


def read(boards, name):
    return pd.read_parquet(io.BytesIO(ParquetReporter().files(boards)[name]))


@pytest.fixture
def boards():
    lost = make_record(cell=make_cell("lost", techniques=(("odd|name", {}),)), status="failed", metrics={}, quality=None)
    return [board_of([*trials(), lost])]


def test_pandas_reads_back_what_was_written(boards):
    pd.testing.assert_frame_equal(read(boards, "leaderboard.parquet"), rows_frame(boards))
    pd.testing.assert_frame_equal(read(boards, "trials.parquet"), trials_frame(boards))


def test_rows_are_those_of_the_csv_with_types(boards):
    frame = read(boards, "leaderboard.parquet")
    csv = pd.read_csv(io.StringIO(CsvReporter().render(boards)))
    assert [*frame] == [*csv]
    assert frame["train_speed"].astype(float).tolist()[:3] == pytest.approx(csv["train_speed"].tolist()[:3], rel=1e-12)
    assert str(frame["rounds"].dtype) == "Int64"
    lost = frame[frame["stack"] == "lost"].iloc[0]
    assert lost[["rank", "train_speed", "train_speed_verdict", "quality"]].isna().all()
    assert frame["steps"].dropna().tolist() == [4, 4, 4]


def test_trials_have_each_metric_once_and_no_paths(boards):
    frame = read(boards, "trials.parquet")
    assert not {"file", "samples"} & {*frame}
    assert len(frame) == len(boards[0].trials)
    [value] = frame.query("stack == 'full' and round == 2 and metric == 'train.tokens_per_s'")["value"]
    assert value == pytest.approx(2000, rel=0.02)
    assert len(trials_frame([boards[0], boards[0]])) == len(frame)


def test_a_baseline_that_stands_on_several_boards_is_there_once(tmp_path):
    (tmp_path / "s").mkdir()
    board = spread.board_of(spread.trials(spread.ddp_cells()), tmp_path / "s", cores=8)
    frame = read([board, board], "trials.parquet")
    assert not frame.duplicated(["cell_id", "session", "round", "metric"]).any()
    assert "reference" not in frame


def test_options_of_several_types_become_json(boards):
    values = [8, "auto", [1, 2]]
    cells = [make_cell("lora", techniques=(("lora", {"rank": v}),), option_axes={"lora.rank": v}) for v in values]
    mixed = board_of([*trials(), *(make_record(cell=cell) for cell in cells)], SETTINGS)
    frame = read([mixed], "trials.parquet")
    assert {*frame["lora.rank"].dropna()} == {"8", '"auto"', "[1,2]"}


def test_the_mark_tells_other_data_from_other_bytes(boards):
    files = ParquetReporter().files(boards)
    other = ParquetReporter().files([board_of(trials({"full": 1000, "fast": 3000, "same": 1000}))])
    for name, content in files.items():
        assert shows_the_same(name, content + b"written by another version", content)
        assert not shows_the_same(name, other[name], content)


def test_no_boards_are_no_files():
    assert ParquetReporter().files([]) == {}
