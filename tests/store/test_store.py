import json

import jsonschema
import pytest

from effbench.plugin import InputError
from effbench.store import store as store_module
from effbench.store.machine import Machine, this_machine
from effbench.store.record import Record, json_schema
from effbench.store.store import KEPT_SAMPLES, Store, read_records, read_samples, write_atomic
from tests.records import make_record

MACHINE = Machine(cpu="AMD EPYC 9654 96-Core Processor", flags="12ab", cores=2, memory_gib=24, gpus=(), system="Linux x86_64")


@pytest.fixture
def store(tmp_path):
    found = Store(tmp_path, MACHINE, "quick")
    found.open(MACHINE)
    return found


def test_what_is_written_is_read_back(store):
    samples = {"samples": {"step": [0.1, 0.2]}, "quality": {"names": ["a"], "per_sample": {"bits_per_byte": [2.0]}}}
    written = store.write(make_record(), samples)
    [(path, record)] = store.read().records
    assert record == written
    assert read_samples(path.with_name(record.samples)) == samples
    assert path.stat().st_size <= 4096


def test_a_record_satisfies_its_documented_schema(store):
    store.write(make_record(), None)
    [(path, _)] = store.read().records
    jsonschema.validate(json.loads(path.read_text()), json_schema())
    assert json.loads(path.read_text())["schema"] == 1


@pytest.mark.parametrize("content", ["", '{"schema": 1, "cell_', "[]", '{"name": "other tool"}', '{"schema": 99}'])
def test_truncated_and_foreign_files_are_named_and_never_counted(store, content):
    store.write(make_record(), None)
    (store.folder / "broken.json").write_text(content)
    found = read_records(store.folder)
    assert len(found.records) == 1
    assert len(found.problems) == 1
    assert "broken.json" in found.problems[0]


@pytest.mark.parametrize(
    ("other", "kept"), [({}, 2), ({"dirty": "others"}, 1), ({"status": "failed", "error": "x"}, 1), ({"session": "mine"}, 1)]
)
def test_a_good_record_that_another_session_made_meanwhile_is_kept(store, other, kept):
    store.write(make_record(**({"session": "theirs"} | other)), None)
    mine = store.write(make_record(session="mine"), {"samples": {"step": [0.1]}})
    records = [record for _, record in store.read().records]
    assert len(records) == kept
    assert mine in records
    assert (store.folder / mine.samples).exists()


def test_long_samples_are_thinned_evenly(store):
    written = store.write(make_record(), {"samples": {"step": [float(i) for i in range(3 * KEPT_SAMPLES)]}})
    kept = read_samples(store.folder / written.samples)["samples"]["step"]
    assert kept[:3] == [0.0, 3.0, 6.0]
    assert len(kept) == KEPT_SAMPLES
    assert (store.folder / written.samples).stat().st_size <= 20 * 1024


def test_a_full_disk_is_one_clear_line_and_leaves_finished_trials(store, monkeypatch):
    store.write(make_record(), None)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store_module.os, "fsync", full)
    with pytest.raises(InputError, match="No space left on device"):
        store.write(make_record(round_number=2), None)
    monkeypatch.undo()
    assert [record.round for _, record in store.read().records] == [1]
    assert not list(store.folder.glob(".*"))


def test_a_write_replaces_the_whole_file(tmp_path):
    write_atomic(tmp_path / "x", b"long content")
    write_atomic(tmp_path / "x", b"short")
    assert (tmp_path / "x").read_bytes() == b"short"


def test_no_results_folder_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="no such results folder"):
        read_records(tmp_path / "absent")


def test_the_machine_slug_is_readable_and_says_nothing_of_whose_it_is():
    assert MACHINE.slug.startswith("amd-epyc-9654-2c-24g-")
    assert MACHINE.slug != MACHINE.model_copy(update={"cores": 4}).slug
    assert set(Machine.model_fields) == {"cpu", "flags", "cores", "memory_gib", "gpus", "system"}
    assert this_machine().cores >= 1


def test_an_unknown_field_is_refused():
    content = json.loads(make_record().model_dump_json())
    with pytest.raises(ValueError, match="hostname"):
        Record.model_validate(content | {"hostname": "box"})
