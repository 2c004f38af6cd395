import pytest

from effbench.board.frame import load, tidy
from effbench.store.record import QualityScores
from tests.records import make_cell, make_record


def write(folder, record):
    file = folder / f"{record.cell_id}.r{record.round}.json"
    file.write_text(record.model_dump_json())
    return file


def test_one_row_per_trial_and_metric(tmp_path):
    cell = make_cell("lora", techniques=(("lora", {"rank": 4}), ("int8", {})), option_axes={"lora.rank": 4})
    record = make_record(
        cell=cell,
        quality=QualityScores(
            scores={"bits_per_byte": 2.5}, before={"bits_per_byte": 3.0}, teacher={"bits_per_byte": 2.2}, n=4
        ),
    )
    frame = tidy([(tmp_path / "x.json", record)]).set_index("metric")
    assert frame.loc["quality.bits_per_byte", "value"] == 2.5
    assert frame.loc["quality_before.bits_per_byte", "value"] == 3.0
    assert frame.loc["quality_teacher.bits_per_byte", "value"] == 2.2
    assert frame.loc["train.tokens_per_s", ["value", "n", "unit"]].tolist() == [1000.0, 10, "tokens/s"]
    assert set(frame["techniques"]) == {"lora + int8"}
    assert set(frame["lora.rank"]) == {4}
    assert len(frame) == len(record.metrics) + 3


def test_the_allocator_is_a_setting_where_it_is_not_the_default(tmp_path):
    settings = [
        tidy([(tmp_path / "x.json", make_record(cell=make_cell(allocator=allocator)))])["settings"][0]
        for allocator in ("default", "keep")
    ]
    assert "allocator" not in settings[0]
    assert settings[1] == settings[0].replace("threads 1", "threads 1, allocator keep")


def test_failed_trial_is_one_row_without_a_metric(tmp_path):
    record = make_record(status="oom", error="no memory", metrics={}, quality=None)
    frame = tidy([(tmp_path / "x.json", record)])
    assert len(frame) == 1
    assert frame[["metric", "value"]].isna().all(axis=None)
    assert frame["error"].item() == "no memory"


def test_truncated_file_is_named_and_not_counted(tmp_path):
    good = write(tmp_path, make_record())
    (tmp_path / "cut.json").write_text(good.read_text()[:100])
    with pytest.warns(UserWarning, match=r"cut\.json"):
        frame = load(tmp_path)
    assert frame.groupby(["cell_id", "round"]).ngroups == 1
    assert len(frame.attrs["problems"]) == 1


def test_empty_folder_gives_an_empty_frame(tmp_path):
    frame = load(tmp_path)
    assert frame.empty
    assert "metric" in frame.columns


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "..\\x"])
def test_sidecar_outside_of_the_folder_is_never_opened(tmp_path, name):
    frame = tidy([(tmp_path / "x.json", make_record(samples=name))])
    assert frame["samples"].isna().all()
