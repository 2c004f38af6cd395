import os
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from effbench.board.frame import load, tidy
from effbench.plugin import Summary
from effbench.store import index
from effbench.store.columns import Columns
from effbench.store.index import read_trials
from effbench.store.store import read_records
from tests.records import make_cell, make_record

OLD_NS = 1_700_000_000_000_000_000
"""Long ago: such a file is not written at this moment."""


def write(file, record, modified_ns=OLD_NS):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(record.model_dump_json(exclude_none=True))
    os.utime(file, ns=(modified_ns, modified_ns))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An index for however few files, in a folder of its own."""
    monkeypatch.setattr(index, "MIN_FILES", 1)
    monkeypatch.setattr(index, "folder", lambda: tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "results"
    for number in (1, 2, 3):
        write(folder / "m" / "s" / f"full.r{number}.json", make_record(round_number=number, samples="x.samples.zst"))
    oom = make_record("big", status="oom", error="no memory", metrics={}, quality=None)
    write(folder / "m" / "s" / "big.r1.json", oom)
    lora = make_cell("lora", techniques=(("lora", {"rank": 4}),), option_axes={"lora.rank": 4})
    write(folder / "m2" / "s" / "lora.r1.json", make_record(cell=lora, machine="m2", dirty="others", leaks="it looks ahead"))
    return folder


@pytest.fixture
def read(monkeypatch):
    """Names of the files that are read as JSON, since it was last asked."""
    names = []
    whole = Path.read_bytes

    def noted(path):
        names.append(path.name)
        return whole(path)

    monkeypatch.setattr(Path, "read_bytes", noted)
    return lambda: [names.pop() for _ in range(len(names))][::-1]


def same(folder):
    """Asserts that the index changes nothing; gives the frame."""
    found, plain = read_trials(folder), read_trials(folder, use_index=False)
    assert found.table.to_pylist() == plain.table.to_pylist()
    assert found.problems == plain.problems
    return found


def test_columns_are_those_of_the_records(results, cache):
    load(results)
    pd.testing.assert_frame_equal(load(results), tidy(read_records(results).records), check_categorical=False)


def test_an_indexed_file_is_not_read_again(results, cache, read):
    load(results)
    assert len(read()) == 5
    load(results)
    assert read() == []
    same(results)


def test_changed_new_and_vanished_files_are_seen(results, cache, read):
    load(results)
    folder = results / "m" / "s"
    write(folder / "full.r1.json", make_record(tokens_per_s=9.0), OLD_NS + 1)
    write(folder / "full.r4.json", make_record(round_number=4))
    (folder / "full.r2.json").unlink()
    read()
    frame = load(results)
    assert read() == ["full.r1.json", "full.r4.json"]
    assert set(frame.loc[frame["stack"] == "full", "round"]) == {1, 3, 4}
    assert frame.loc[(frame["round"] == 1) & (frame["metric"] == "train.tokens_per_s"), "value"].min() == 9.0
    same(results)


def test_a_file_of_another_size_is_read_again_though_its_time_is_the_same(results, cache):
    load(results)
    write(results / "m" / "s" / "full.r1.json", make_record(tokens_per_s=123456.0))
    assert 123456.0 in set(load(results)["value"])


def test_what_was_just_written_is_not_trusted_yet(results, cache, read):
    write(results / "m" / "s" / "full.r1.json", make_record(), 2**62)
    load(results)
    read()
    load(results)
    assert read() == ["full.r1.json"]
    same(results)


def test_problems_are_remembered(results, cache, read):
    bad = results / "m" / "s" / "cut.json"
    bad.write_text('{"schema": 1, "cell_')
    os.utime(bad, ns=(OLD_NS, OLD_NS))
    first = same(results).problems
    read()
    assert read_trials(results).problems == first
    assert read() == []
    assert "cut.json: not a trial record" in first[0]
    bad.unlink()
    assert same(results).problems == []


def damaged(content):
    middle = len(content) // 2
    return {
        "empty": b"",
        "junk": b"PAR1 no Parquet PAR1",
        "truncated": content[:middle],
        "changed": content[: middle // 2] + bytes([content[middle // 2] ^ 255]) + content[middle // 2 + 1 :],
    }


@pytest.mark.parametrize("kind", ["empty", "junk", "truncated", "changed"])
def test_a_damaged_index_is_made_anew(results, cache, read, kind):
    load(results)
    [file] = cache.iterdir()
    file.write_bytes(damaged(file.read_bytes())[kind])
    read()
    same(results)
    assert len(read()) >= 5
    same(results)
    pq.read_table(file)


def test_an_index_of_another_layout_is_made_anew(results, cache, read, monkeypatch):
    load(results)
    read()
    monkeypatch.setattr(index, "LAYOUT", "another")
    load(results)
    assert len(read()) == 5


def test_a_cache_that_cannot_be_written_costs_time_alone(results, cache, caplog):
    cache.write_text("a file where the folder should be")
    assert len(same(results).table) == 5
    assert "is not written" in caplog.text


def test_few_files_need_no_index(results, cache, monkeypatch):
    monkeypatch.setattr(index, "MIN_FILES", 6)
    load(results)
    assert not cache.exists()


def test_cells_are_told_apart_by_what_they_are_and_not_by_their_id():
    columns = Columns()
    for rank in (4, 4.0, True, "4"):
        cell = make_cell(techniques=(("lora", {"rank": rank}),), option_axes={"lora.rank": rank})
        columns.add("x.json", make_record(cell=cell, cell_id="the same"))
    assert len(set(columns.table()["options"].to_pylist())) == 4
    assert len(set(columns.table()["variant"].to_pylist())) == 4


@pytest.mark.parametrize(
    "changes",
    [
        {"round_number": 2**70},
        {"metrics": {"train.step_s": Summary(median=1.0, n=2**70, unit="s")}},
        {"cell": make_cell(scaling="weak", data_ranks=0)},
    ],
)
def test_a_number_that_no_trial_has_is_a_problem_line(results, cache, changes):
    write(results / "m" / "s" / "odd.json", make_record(**changes))
    found = same(results)
    assert len(found.table) == 5
    assert "odd.json: not a trial record" in found.problems[0]


def test_an_option_axis_never_takes_the_place_of_a_column(tmp_path):
    cell = make_cell(option_axes={"samples": "/etc/passwd", "file": "/etc/passwd", "value": 1})
    frame = tidy([(tmp_path / "x.json", make_record(cell=cell))])
    assert frame["samples"].isna().all()
    assert set(frame["file"]) == {str(tmp_path / "x.json")}
    assert frame.columns.is_unique


def test_large_frames_are_small(tmp_path):
    """Text is kept once, and a row is a few bytes beside its three floats."""
    record = make_record()
    sizes = [
        tidy((tmp_path / "x.json", record) for _ in range(count)).memory_usage(index=False, deep=True).sum()
        for count in (1000, 2000)
    ]
    rows = 1000 * (len(record.metrics) + 1)
    assert (sizes[1] - sizes[0]) / rows < 120
