"""What a run leaves beside its records."""

import csv
import json

import pytest

from effbench.cli.run import show
from tests.board import test_world_sizes as spread
from tests.board.test_scaling import LENGTHS, SETTINGS, linear, quadratic, trials


@pytest.mark.parametrize(("lengths", "along"), [(LENGTHS, {"scaling.csv", "by_length.csv"}), (LENGTHS[:2], set())])
def test_a_run_leaves_tables_along_the_length_where_there_are_lengths(tmp_path, capsys, lengths, along):
    (tmp_path / "suite.json").write_text(json.dumps(SETTINGS))
    for record in trials({"full": quadratic, "lean": linear}, lengths=lengths):
        (tmp_path / f"{record.cell_id}.r{record.round}.json").write_text(record.model_dump_json())
    show(tmp_path, tmp_path)
    assert {file.name for file in tmp_path.iterdir() if file.suffix in (".csv", ".md")} == {
        "LEADERBOARD.md",
        "leaderboard.csv",
        *along,
    }
    printed = capsys.readouterr().out
    assert all(name in printed for name in along)
    for name in along:
        with (tmp_path / name).open() as file:
            assert {row["stack"] for row in csv.DictReader(file)} == {"full", "lean"}


def test_a_run_of_several_ranks_leaves_a_table_across_world_sizes(tmp_path, capsys):
    (tmp_path / "suite.json").write_text(json.dumps(SETTINGS))
    for record in spread.trials(spread.ddp_cells()):
        (tmp_path / f"{record.cell_id}.r{record.round}.json").write_text(record.model_dump_json())
    show(tmp_path, tmp_path)
    assert "world_sizes.csv" in capsys.readouterr().out
    with (tmp_path / "world_sizes.csv").open() as file:
        found = [(row["stack"], row["world_size"]) for row in csv.DictReader(file)]
    assert found == [("full", "1"), ("ddp", "1"), ("ddp", "2"), ("ddp", "4")]
