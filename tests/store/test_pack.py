import json
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from effbench.board.frame import load
from effbench.board.leaderboard import build
from effbench.cli import app
from effbench.plugin import InputError
from effbench.store import pack as pack_module
from effbench.store import packed
from effbench.store.machine import Machine
from effbench.store.pack import pack, unpack
from effbench.store.packed import pack_schema, packed_trials, read_pack
from effbench.store.store import Store, read_records, read_samples
from tests.records import make_cell, make_record

MACHINE = Machine(cpu="a", flags="12ab", cores=2, memory_gib=24, gpus=(), system="Linux x86_64")


def quality(scores):
    names = [str(number) for number in range(len(scores))]
    return {"names": names, "weights": [1.0] * len(scores), "per_sample": {"bits_per_byte": scores}}


def fill(root, rounds, session="session"):
    store = Store(root, MACHINE, "s")
    store.open(MACHINE)
    for number in rounds:
        for stack, shift in (("full", 0.0), ("fast", 0.1)):
            cell = make_cell(stack, techniques=() if stack == "full" else ((stack, {}),))
            scores = [2 + shift + 0.01 * number + 0.1 * sample for sample in range(8)]
            record = make_record(
                cell=cell, round_number=number, bits=sum(scores) / 8, session=session, tokens_per_s=1000.0 + number, dirty=None
            )
            store.write(record, {"samples": {"step": [0.1]}, "quality": quality(scores)})
    return store


@pytest.fixture
def store(tmp_path):
    (tmp_path / "results").mkdir()
    found = fill(tmp_path / "results", (1, 2, 3, 4))
    found.write(make_record("big", status="oom", error="no memory", metrics={}, quality=None), None)
    (found.folder / "suite.json").write_text(json.dumps({"baseline": "full", "delta": 0.05}))
    return found


def contents(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def packs(folder):
    return sorted(folder.rglob("records-*.parquet"))


@pytest.mark.parametrize("rows", [2, 8192])
def test_unpacking_gives_the_same_bytes(store, monkeypatch, rows):
    monkeypatch.setattr(pack_module, "ROWS_PER_GROUP", rows)
    before = contents(store.folder)
    [done] = pack(store.folder)
    assert done.trials == 9
    assert {file.name for file in store.folder.iterdir()} == {done.file.name, "suite.json"}
    [back] = unpack(store.folder)
    assert contents(store.folder) == before
    assert back.loose_bytes == done.loose_bytes == sum(len(b) for name, b in before.items() if name != "suite.json")


def test_only_earlier_rounds_are_packed_where_it_is_asked(store):
    list(pack(store.folder, before_round=3))
    assert {record.round for file, record in read_records(store.folder).records if file.exists()} == {3, 4}
    assert {record.round for _, record in read_records(store.folder).records} == {1, 2, 3, 4}


def test_packing_changes_no_frame_and_no_board(store, tmp_path):
    results = tmp_path / "results"
    frame, boards, records = load(results), build(results), read_records(results)
    list(pack(results, before_round=4))
    assert packs(results)
    after = load(results)
    pd.testing.assert_frame_equal(after.drop(columns="samples"), frame.drop(columns="samples"), check_categorical=False)
    assert after["samples"].isna().tolist() == frame["samples"].isna().tolist()
    assert read_records(results) == records
    [before], [now] = boards, build(results)
    assert before.rows["quality_low"].notna().any()  # the sidecars are read from the pack
    pd.testing.assert_frame_equal(now.rows, before.rows)
    assert now.notes == before.notes


@pytest.mark.parametrize("rows", [2, 8192])
def test_samples_are_read_from_the_pack(store, monkeypatch, rows):
    monkeypatch.setattr(pack_module, "ROWS_PER_GROUP", rows)
    list(pack(store.folder))
    frame = load(store.folder).drop_duplicates("file").dropna(subset="samples").set_index(["stack", "round"])
    found = read_samples(Path(frame.loc[("fast", 2), "samples"]))
    assert found["quality"]["per_sample"]["bits_per_byte"][0] == pytest.approx(2.12)


def test_a_good_record_of_another_session_is_kept_though_it_is_packed(store):
    list(pack(store.folder))
    mine = store.write(make_record(session="mine"), None)
    sessions = [r.session for _, r in store.read().records if (r.cell_id, r.round) == (mine.cell_id, 1)]
    assert sorted(sessions) == ["mine", "session"]
    other = mine.fingerprint.model_copy(update={"weights": "changed"})
    store.write(make_record(session="mine", fingerprint=other, round_number=2), None)
    assert [r.session for _, r in store.read().records if (r.cell_id, r.round) == (mine.cell_id, 2)] == ["mine"]


def test_packs_of_different_rounds_stand_side_by_side(store):
    list(pack(store.folder, before_round=2))
    list(pack(store.folder, before_round=3))
    list(pack(store.folder))
    assert len(packs(store.folder)) == 3
    assert len(read_records(store.folder).records) == load(store.folder)["file"].nunique() == 9


def test_a_trial_that_lies_both_packed_and_loose_counts_once(store):
    before = contents(store.folder)
    list(pack(store.folder))
    for name, content in before.items():
        (store.folder / name).write_bytes(content)
    assert len(read_records(store.folder).records) == load(store.folder)["file"].nunique() == 9
    list(unpack(store.folder))
    assert contents(store.folder) == before


def rate(frame):
    return frame.loc[
        (frame["stack"] == "full") & (frame["round"] == 1) & (frame["metric"] == "train.tokens_per_s"), "value"
    ].item()


def test_what_was_measured_after_packing_replaces_what_was_packed(store):
    list(pack(store.folder))
    again = make_record(tokens_per_s=5.0)
    file = store.folder / f"{again.cell_id}.r1.json"
    file.write_text(again.model_dump_json())
    assert rate(load(store.folder)) == 5.0
    assert again in [record for _, record in read_records(store.folder).records]
    list(pack(store.folder))
    assert len(packs(store.folder)) == 2
    assert rate(load(store.folder)) == 5.0
    list(unpack(store.folder))
    assert rate(load(store.folder)) == 5.0
    assert not packs(store.folder)


def test_what_is_no_record_stays_where_it_is(store):
    (store.folder / "cut.json").write_text("{")
    (store.folder / "odd.json").write_text(make_record(samples="odd.zst").model_dump_json())
    [done] = pack(store.folder)
    assert (store.folder / "cut.json").exists()
    assert (store.folder / "odd.json").exists()
    assert len(done.problems) == 2
    assert done.trials == 9


def test_what_cannot_be_read_stays_and_is_named(store, monkeypatch):
    victim, real = next(store.folder.glob("*.r2.json")), Path.read_bytes

    def read(file):
        if file == victim:
            raise PermissionError(13, "Permission denied")
        return real(file)

    monkeypatch.setattr(Path, "read_bytes", read)
    [done] = pack(store.folder)
    assert done.problems == [f"{victim}: cannot be read, left as it is (Permission denied)"]
    assert done.trials == 8
    assert victim.exists()


def test_a_file_that_changes_while_it_is_packed_loses_nothing(store, monkeypatch):
    before = contents(store.folder)
    victim = next(store.folder.glob("*.r2.json"))
    real = pack_module.write_atomic

    def meanwhile(path, content):
        real(path, content)
        victim.write_bytes(b"measured again")

    monkeypatch.setattr(pack_module, "write_atomic", meanwhile)
    with pytest.raises(InputError, match="all files are intact"):
        list(pack(store.folder))
    assert contents(store.folder) == before | {victim.name: b"measured again"}


def hostile(store, **columns):
    """A pack with other columns."""
    list(pack(store.folder))
    [file] = packs(store.folder)
    table = pq.read_table(file)
    for name, values in columns.items():
        position = table.schema.get_field_index(name)
        field = table.schema.field(name)
        table = table.set_column(position, field, pa.array(values(table[name].to_pylist())).cast(field.type))
    pq.write_table(table, file)
    return file


def refused(store):
    """Asserts that the only pack is named as a problem; gives that line."""
    found = read_records(store.folder)
    with pytest.warns(UserWarning, match="not a pack of trials"):
        frame = load(store.folder)
    assert found.records == []
    assert frame.empty
    assert "not a pack of trials" in found.problems[0]
    [done] = unpack(store.folder)
    assert done.problems
    assert packs(store.folder)
    return found.problems[0]


@pytest.mark.parametrize("name", ["../x.json", "/etc/x.json", "a\\b.json", ".x.json", "suite.json", "LEADERBOARD.md", ""])
def test_a_pack_names_no_file_outside_nor_another_than_a_records(store, name):
    hostile(store, file=lambda names: [name, *names[1:]])
    before = {file: file.read_bytes() for file in store.folder.iterdir()}
    assert "name" in refused(store)
    assert {file: file.read_bytes() for file in store.folder.iterdir()} == before


def test_two_trials_of_one_name_are_no_pack(store):
    hostile(store, file=lambda names: [names[1], *names[1:]])
    refused(store)


def test_a_pack_puts_no_sidecar_in_the_place_of_another_file(store):
    hostile(store, samples=lambda names: ["suite.json", *names[1:]])
    before = (store.folder / "suite.json").read_bytes()
    list(unpack(store.folder))
    assert (store.folder / "suite.json").read_bytes() == before


@pytest.mark.parametrize(
    ("column", "value"), [("options", "[]"), ("options", "{"), ("options", "[" * 100_000), ("parallel", "1")]
)
def test_text_that_must_be_json_is_checked(store, column, value):
    hostile(store, **{column: lambda values: [value, *values[1:]]})
    with pytest.warns(UserWarning, match=column):
        assert load(store.folder).empty


@pytest.mark.parametrize("content", [b"", b"junk", b"PAR1" + bytes(100) + b"PAR1"])
def test_junk_is_a_problem_line(store, content):
    list(pack(store.folder))
    packs(store.folder)[0].write_bytes(content)
    refused(store)


def test_damage_anywhere_is_noticed(store):
    list(pack(store.folder))
    [file] = packs(store.folder)
    good = file.read_bytes()
    frame, trials = read_pack(file), list(packed_trials(file))
    for position in range(4, len(good), len(good) // 50):
        file.write_bytes(good[:position] + bytes([good[position] ^ 0x55]) + good[position + 1 :])
        try:
            assert read_pack(file).equals(frame)
            assert list(packed_trials(file)) == trials
        except packed.PackError as error:
            assert "\n" not in str(error)  # noqa: PT017 - either is right: damage to what is not read, or a line


def test_foreign_parquet_is_a_problem_line(store):
    list(pack(store.folder))
    pq.write_table(pa.table({"a": [1]}), packs(store.folder)[0])
    refused(store)


def test_what_unpacks_to_too_much_is_refused_before_it_is_read(store, monkeypatch):
    list(pack(store.folder))
    monkeypatch.setattr(packed, "_MAX_BYTES", 1000)
    assert "more than trials can be" in refused(store)


def test_columns_that_are_not_those_of_the_records_are_told(store):
    list(pack(store.folder))
    assert packed.columns_agree(packs(store.folder)[0])
    list(unpack(store.folder))
    file = hostile(store, seq_len=lambda values: [values[0] + 1, *values[1:]])
    assert not packed.columns_agree(file)


def test_a_pack_of_another_layout_is_read_from_its_records(store, monkeypatch):
    frame = load(store.folder)
    list(pack(store.folder))
    [file] = packs(store.folder)
    table = pq.read_table(file).drop_columns(["weights", "metrics"])
    pq.write_table(table.replace_schema_metadata({"layout": "0"}), file)
    after = load(store.folder)
    pd.testing.assert_frame_equal(after.drop(columns="samples"), frame.drop(columns="samples"), check_categorical=False)
    assert set(pack_schema().names) > set(table.schema.names)


def test_the_commands(store, tmp_path):
    def run(*arguments):
        return CliRunner().invoke(app, [*map(str, arguments)])

    results = tmp_path / "results"
    before = contents(results)
    done = run("pack", results, "--before-round", 3)
    assert done.exit_code == 0
    assert "5 trials packed into" in done.output
    assert "4 trials packed into" in run("pack", results).output
    nothing = run("pack", results)
    assert nothing.exit_code == 0
    assert "no trial to pack" in nothing.output
    assert run("unpack", results).exit_code == 0
    assert contents(results) == before
    assert "nothing packed" in run("unpack", results).output
    (store.folder / "cut.json").write_text("{")
    assert run("pack", results).exit_code == 1
    assert isinstance(run("pack", tmp_path / "absent").exception, InputError)
