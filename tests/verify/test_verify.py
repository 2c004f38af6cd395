"""A good folder passes; each way to spoil it is found under its own code, and nothing else is."""

import json
import os
import shutil
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from effbench.plan.suite import Use
from effbench.plugin.discovery import discover
from effbench.plugin.errors import InputError
from effbench.store.pack import pack
from effbench.store.store import Store
from effbench.verify.finding import SEVERITIES, Report
from effbench.verify.verify import verify
from tests.verify.submission import MACHINE, SUITE, cell_of, edit, edit_samples, good_trial, move, record_file, write


@pytest.fixture(scope="module")
def catalog():
    return discover()


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return write(tmp_path_factory.mktemp("good"))


@pytest.fixture
def folder(pristine, tmp_path):
    """A suite's folder of its own for each test."""
    shutil.copytree(pristine.parent, tmp_path / "results" / pristine.parent.name)
    return tmp_path / "results" / pristine.parent.name / pristine.name


def codes(folder, catalog):
    return {finding.code for finding in verify(folder.parent.parent, catalog).findings}


def test_a_good_folder_passes(folder, catalog):
    report = verify(folder.parent.parent, catalog)
    assert report == Report(6, [])
    assert list(report.lines()) == ["6 records: 0 errors, 0 warnings"]


def test_one_good_record_passes(folder, catalog):
    assert verify(record_file(folder), catalog) == Report(1, [])


def test_what_is_not_there_is_bad_input(tmp_path, catalog):
    with pytest.raises(InputError, match="no such folder"):
        verify(tmp_path / "absent", catalog)


def set_(*path_and_value):
    """A change that sets a nested key."""
    *path, key, value = path_and_value

    def change(content):
        for part in path:
            content = content[part]
        content[key] = value

    return change


def without(*path):
    """A change that takes a nested key away."""

    def change(content):
        for part in path[:-1]:
            content = content[part]
        del content[path[-1]]

    return change


IN_THE_RECORD = {
    "schema": [
        set_("schema", 2),
        set_("surplus", 1),
        set_("round", "one"),
        without("fingerprint"),
        set_("cell", "data_ranks", 0),
    ],
    "cell-id": [set_("cell", "facts", "layers", 3)],
    "folder": [set_("machine", "other-machine")],
    "sidecar": [without("samples"), set_("samples", "../../other.samples.zst")],
    "private": [set_("leaks", "see /home/somebody/model")],
    "phases": [without("phases", "load"), set_("phases", "infer", "done"), set_("status", "failed")],
    "metrics": [without("metrics", "train.step_s"), without("metrics", "parameters.total")],
    "no-memory": [without("metrics", "train.peak_memory_bytes")],
    "summary": [
        set_("metrics", "checkpoint.bytes", "median", -1),
        set_("metrics", "checkpoint.bytes", "n", 0),
        set_("metrics", "checkpoint.bytes", "median", float("nan")),
        set_("metrics", "checkpoint.bytes", "low", 5000),
        set_("metrics", "parameters.trainable", "median", 0),
    ],
    "unit": [set_("metrics", "checkpoint.bytes", "unit", "KiB")],
    "unknown-metric": [set_("metrics", "train.joy", {"median": 1, "unit": ""})],
    "conditions": [
        set_("conditions", "other_cpu", 3.5),
        set_("conditions", "seconds", 0),
        set_("conditions", "wanted", 2),
        set_("conditions", "cores", 64),
        set_("wall_s", float("inf")),
    ],
    "no-conditions": [without("conditions")],
    "no-quality": [without("quality")],
    "mfu": [set_("metrics", "train.mfu", {"median": 1.2, "unit": "share"})],
    "seed": [set_("seed", 7)],
    "not-ok": [lambda content: content.update(status="oom", error="out of memory", metrics={})],
    "git": [set_("git", None), set_("git", "0123456789ab+dirty")],
    "fingerprint": [
        set_("fingerprint", "techniques", {}),
        without("fingerprint", "versions", "torch"),
        set_("plugins", {}),
    ],
    "throughput": [set_("metrics", "train.tokens_per_s", "median", 2600.0)],
    "loss": [set_("final_loss", 1.9), set_("metrics", "train.final_loss", "median", 1.9)],
    "quality": [set_("quality", "scores", "bits_per_byte", 1.0), set_("quality", "n", 5)],
    "duration": [set_("wall_s", 0.5)],
    "samples": [
        set_("metrics", "infer.prefill_s", "stopped", None),
        set_("metrics", "infer.prefill_s", "warmup", 1),
        set_("metrics", "infer.prefill_tokens_per_s", "n", 4),
    ],
    "median": [set_("metrics", "infer.prefill_s", "low", 0.001), without("metrics", "infer.prefill_s", "high")],
}


@pytest.mark.parametrize(
    ("code", "number"), [(code, number) for code, changes in IN_THE_RECORD.items() for number in range(len(changes))]
)
def test_a_record_spoiled_in_one_way(code, number, folder, catalog):
    edit(record_file(folder), IN_THE_RECORD[code][number])
    found = codes(folder, catalog)
    # What is no record at all leaves a gap in its rounds, and its raw samples behind.
    assert found - ALSO.get(code, set()) == {code}


ALSO = {
    "schema": {"rounds", "stray"},
    "cell-id": {"file-name"},
    "phases": {"not-ok"},  # the status itself
    "sidecar": {"stray"},
    "fingerprint": {"mixed-code"},
}


IN_THE_RAW_SAMPLES = {
    "samples": [
        lambda content: content["samples"].pop("decode"),
        lambda content: content["samples"]["prefill"].pop(),
        lambda content: content["samples"].update(end_to_end=[1.0] * 20),
    ],
    "median": [lambda content: content["samples"].update(step=sorted(content["samples"]["step"])[:10] + [0.04] * 10)],
    "loss": [lambda content: content["samples"]["loss"].__setitem__(-1, 0.5)],
    "quality": [
        lambda content: content.pop("quality"),
        lambda content: content["quality"]["per_sample"]["bits_per_byte"].__setitem__(0, 9.0),
        lambda content: content["quality"]["weights"].pop(),
    ],
}


@pytest.mark.parametrize(
    ("code", "number"), [(code, number) for code, changes in IN_THE_RAW_SAMPLES.items() for number in range(len(changes))]
)
def test_raw_samples_that_contradict_their_record(code, number, folder, catalog):
    edit_samples(record_file(folder), IN_THE_RAW_SAMPLES[code][number])
    assert codes(folder, catalog) >= {code}


def test_a_median_kept_while_the_slow_samples_are_hidden(folder, catalog):
    """The mean moves, and throughput with it, where the median does not."""
    file = record_file(folder)
    edit_samples(file, lambda content: content["samples"]["step"].__setitem__(slice(-1, None), [0.5]))
    assert "throughput" in codes(folder, catalog)


def test_other_warm_up_than_the_rule_gives(folder, catalog):
    file = record_file(folder)
    samples = json.loads(file.read_text())["metrics"]["train.step_s"]
    edit(file, lambda content: content["metrics"]["train.step_s"].update(warmup=8, n=samples["n"] - 8))
    assert "warm-up" in codes(folder, catalog)


def test_too_few_samples(folder, catalog):
    strict = SUITE.sampling.model_copy(update={"min_samples": 30})
    suite = SUITE.model_copy(update={"sampling": strict})
    shutil.rmtree(folder)
    store = Store(folder.parent.parent, MACHINE, "s")
    store.open(suite)
    for number in (1, 2, 3):
        for stack in suite.stacks:
            store.write(*good_trial(cell_of(stack, sampling=strict), number))
    assert codes(folder, catalog) == {"samples"}


def capped(folder, max_seconds):
    """The good folder again, its inference stopped by a time cap."""
    rule = SUITE.sampling.model_copy(update={"min_samples": 30, "max_seconds": max_seconds})
    shutil.rmtree(folder)
    store = Store(folder.parent.parent, MACHINE, "s")
    store.open(SUITE.model_copy(update={"sampling": rule}))
    for number in (1, 2, 3):
        for stack in SUITE.stacks:
            record, samples = good_trial(cell_of(stack, sampling=rule), number)
            metrics = {
                name: summary.model_copy(update={"stopped": "cap"}) if summary.stopped == "interval" else summary
                for name, summary in record.metrics.items()
            }
            store.write(record.model_copy(update={"metrics": metrics}), samples)


def test_a_time_cap_leaves_few_samples_which_is_said(folder, catalog):
    capped(folder, max_seconds=1.5)
    assert codes(folder, catalog) == {"few-samples"}


def test_a_time_cap_that_was_not_reached(folder, catalog):
    capped(folder, max_seconds=3.0)
    assert codes(folder, catalog) == {"samples"}


def test_thinned_samples_are_held_to_their_sampling_error(folder, catalog):
    shutil.rmtree(folder)
    suite = SUITE.model_copy(update={"training": SUITE.training.model_copy(update={"steps": 2500})})
    store = Store(folder.parent.parent, MACHINE, "s")
    store.open(suite)
    for number in (1, 2, 3):
        for stack in suite.stacks:
            store.write(*good_trial(cell_of(stack, steps=2500), number))
    assert codes(folder, catalog) == set()
    file = folder / f"{cell_of('fast', steps=2500).id}.r1.json"
    edit(file, lambda content: content["metrics"]["train.tokens_per_s"].update(median=2700.0))
    assert codes(folder, catalog) == {"throughput"}
    edit(file, lambda content: content["metrics"]["train.step_s"].update(median=0.045, low=0.04))
    assert codes(folder, catalog) == {"throughput", "median"}


def test_place(folder, catalog):
    file = record_file(folder)
    move(file, file.with_name("anything.r1.json"))
    assert codes(folder, catalog) == {"file-name"}


def test_a_record_of_a_second_session_bears_its_name(folder, catalog):
    """Beside the first, and only under its own session's."""
    store = Store(folder.parent.parent, MACHINE, "s")
    for stack in SUITE.stacks:
        store.write(*good_trial(cell_of(stack), 1, "two"), beside=True)
    assert codes(folder, catalog) == set()
    move(folder / f"{cell_of('fast').id}.r1.two.json", folder / f"{cell_of('fast').id}.r1.three.json")
    assert codes(folder, catalog) == {"file-name"}


def test_the_folder_of_another_machine(folder, catalog):
    folder.parent.rename(folder.parent.with_name("fast-machine-00000000"))
    assert codes(folder.parent.with_name("fast-machine-00000000") / "s", catalog) == {"machine", "folder"}


def test_another_machine_s_facts(folder, catalog):
    edit(folder.parent / "machine.json", set_("memory_gib", 64))
    assert codes(folder, catalog) == {"machine"}
    (folder.parent / "machine.json").unlink()
    assert codes(folder, catalog) == {"machine"}


@pytest.mark.parametrize("content", [None, "{", "[]", '{"name": "s"}'])
def test_no_suite(content, folder, catalog):
    (folder / "suite.json").unlink()
    if content:
        (folder / "suite.json").write_text(content)
    assert codes(folder, catalog) == {"suite"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("threads", 2),
        ("axes", {"seq_len": [128], "batch_size": [2]}),
        ("models", ["other"]),
        ("training", {"steps": 9, "lr": 1e-3}),
    ],
)
def test_cells_of_another_suite(key, value, folder, catalog):
    edit(folder / "suite.json", set_(key, value))
    assert codes(folder, catalog) - {"missing-cells"} == {"suite-cell"}


def test_a_stack_that_its_suite_does_not_have_or_has_otherwise(folder, catalog):
    edit(folder / "suite.json", set_("stacks", "fast", "lr", 0.5))
    assert codes(folder, catalog) == {"suite-cell"}
    edit(folder / "suite.json", without("stacks", "fast"))
    assert codes(folder, catalog) == {"suite-cell"}


def test_rounds_left_out(folder, catalog):
    record_file(folder, number=2).unlink()
    report = verify(folder.parent.parent, catalog)
    assert {finding.code for finding in report.findings} == {"rounds", "stray"}
    assert any("lacks 2 of 3" in finding.detail for finding in report.findings)


def test_a_workload_may_have_fewer_rounds(folder, catalog):
    edit(folder / "suite.json", set_("rounds", 5))
    assert codes(folder, catalog) == {"rounds"}
    edit(folder / "suite.json", set_("for_workload", {"docs": {"rounds": 3}}))
    assert codes(folder, catalog) == set()


def test_cells_of_the_suite_without_a_record(folder, catalog):
    edit(folder / "suite.json", set_("axes", "seq_len", [64, 128]))
    edit(folder / "suite.json", set_("stacks", "third", {"use": []}))
    report = verify(folder.parent.parent, catalog)
    assert {finding.code for finding in report.findings} == {"missing-cells"}
    assert len(report.findings) == 2 + 2  # both stacks at 128, the third at both lengths


def test_without_its_baseline(folder, catalog):
    for number in (1, 2, 3):
        record_file(folder, "full", number).unlink()
    assert codes(folder, catalog) == {"baseline", "missing-cells", "stray"}


def test_the_baseline_of_another_session(folder, catalog):
    edit(record_file(folder, "full", 2), set_("session", "another"))
    assert codes(folder, catalog) == {"unpaired"}


def test_a_baseline_that_failed_is_none_to_compare_with(folder, catalog):
    edit(record_file(folder, "full", 2), set_("status", "oom"))
    edit(record_file(folder, "full", 2), set_("error", "no memory"))
    assert "unpaired" in codes(folder, catalog)


@pytest.mark.parametrize(("disturbed", "code"), [(1, "dirty"), (3, "mostly-dirty")])
def test_disturbed_trials(disturbed, code, folder, catalog):
    for number in range(1, disturbed + 1):
        edit(record_file(folder, number=number), set_("dirty", "other programs used 2.00 cores, 1 of 4 were free"))
    assert codes(folder, catalog) == {code}


def test_older_code_among_the_records(folder, catalog):
    edit(record_file(folder), set_("fingerprint", "techniques", {"speedy": "01d"}))
    edit(record_file(folder, number=2), set_("fingerprint", "versions", "torch", "2.12.0"))
    assert codes(folder, catalog) == {"mixed-code"}
    edit(record_file(folder, number=3), set_("fingerprint", "methodology", "1"))
    assert codes(folder, catalog) == {"mixed-code", "methodology"}


def test_records_of_other_code_than_is_installed_here(tmp_path, catalog):
    stacks = {"full": SUITE.stacks["full"], "fast": SUITE.stacks["fast"].model_copy(update={"use": [Use(technique="lora")]})}
    store = Store(tmp_path, MACHINE, "s")
    store.open(SUITE.model_copy(update={"stacks": stacks}))
    for number in (1, 2, 3):
        for stack in stacks:
            cell = cell_of(stack, techniques=(("lora", {}),) if stack == "fast" else ())
            record, samples = good_trial(cell, number)
            hashes = {name: catalog.technique_hash(name) if number < 3 else "01d" for name, _ in cell.techniques}
            fingerprint = record.fingerprint.model_copy(update={"techniques": hashes})
            store.write(record.model_copy(update={"fingerprint": fingerprint}), samples)
    found = [finding for finding in verify(tmp_path, catalog).findings if finding.code == "other-code"]
    assert [finding.what for finding in found] == ["made by other code of lora than is installed here"]
    assert ".r3.json" in found[0].file


def test_the_same_trial_twice(folder, catalog):
    file = record_file(folder)
    for old in (file, file.with_name(file.name.replace(".json", ".samples.zst"))):
        shutil.copy(old, old.with_name(old.name.replace(".r1.", ".r1.one.")))
    copy = file.with_name(file.name.replace(".r1.", ".r1.one."))
    edit(copy, set_("samples", copy.name.replace(".json", ".samples.zst")))
    assert codes(folder, catalog) == {"duplicate"}


def test_one_round_copied_as_another(folder, catalog):
    """Copied from round 1 to 2 and called round 2."""
    first, second = record_file(folder), record_file(folder, number=2)
    second.unlink()
    shutil.copy(first, second)
    for file in (first, second):
        sidecar = file.with_name(file.name.replace(".json", ".samples.zst"))
        edit(file, set_("samples", sidecar.name))
    shutil.copy(*(file.with_name(file.name.replace(".json", ".samples.zst")) for file in (first, second)))
    edit(second, lambda content: content.update(round=2, seed=2000))
    assert codes(folder, catalog) == {"copied"}
    edit_samples(second, lambda content: [values.reverse() for values in content["samples"].values()])
    assert "copied" in codes(folder, catalog)


def test_figures_copied_where_samples_are_not(folder, catalog):
    theirs = json.loads(record_file(folder, number=2).read_text())["metrics"]
    edit(record_file(folder), lambda content: content.update(metrics=theirs))
    assert "copied" in codes(folder, catalog)


def test_one_equal_duration_is_chance(folder, catalog):
    """A median may be shared, for a clock has steps; the rate, which is of the mean, is another."""
    theirs = json.loads(record_file(folder, number=2).read_text())["metrics"]["infer.prefill_s"]
    edit(record_file(folder), set_("metrics", "infer.prefill_s", theirs))
    assert "copied" not in codes(folder, catalog)


def test_copied_between_machines(folder, catalog):
    other = MACHINE.model_copy(update={"memory_gib": 16})
    store = Store(folder.parent.parent, other, "s")
    store.open(SUITE)
    for number in (1, 2, 3):
        for stack in SUITE.stacks:
            record, samples = good_trial(cell_of(stack), number)
            store.write(record.model_copy(update={"machine": other.slug, "session": "two"}), samples)
    report = verify(folder.parent.parent, catalog)
    assert {finding.code for finding in report.findings} == {"copied"}
    assert len(report.findings) == 6


def test_files_that_are_no_records(folder, catalog):
    (folder / "cut.r1.json").write_text(record_file(folder).read_text()[:100])
    (folder / "large.r1.json").write_bytes(b" " * (2**20 + 1))
    (folder / "deep.r1.json").write_text("[" * 100_000)
    os.symlink("/etc/hostname", folder / "link.r1.json")
    report = verify(folder.parent.parent, catalog)
    assert [finding.code for finding in report.findings] == ["unreadable"] * 4


@pytest.mark.parametrize("value", [None, -1, 1e308, 10**30, "x", []])
def test_nothing_that_a_record_may_say_ends_the_check(value, folder, catalog):
    """Each figure in turn: another finding, or none where the figure decides nothing, and never an exception."""
    file = record_file(folder)
    content = json.loads(file.read_text())
    for path in figures(content):
        edit(file, set_(*path, value))
        verify(file, catalog)
        file.write_text(json.dumps(content))


def figures(content, path=()):
    """Where numbers stand."""
    if isinstance(content, dict):
        for key, inner in content.items():
            yield from figures(inner, (*path, key))
    elif isinstance(content, int | float):
        yield path


@pytest.mark.parametrize(
    "change", [set_("rounds", 10**12), set_("axes", {name: [64, *range(1, 20_000)] for name in ("seq_len", "batch_size")})]
)
def test_a_suite_of_endless_cells_or_rounds(change, folder, catalog):
    edit(folder / "suite.json", change)
    assert codes(folder, catalog) - {"suite-cell"} <= {"rounds", "missing-cells"}


def test_a_file_that_is_no_pack_is_an_error(folder, catalog):
    (folder / "records-1.parquet").write_bytes(b"PAR1")
    assert codes(folder, catalog) == {"packed"}


def test_packed_trials_pass_every_check_as_files_do(folder, catalog):
    edit(record_file(folder), set_("seed", 7))
    whole = folder.parent.parent
    before = sorted((finding.code, finding.what) for finding in verify(whole, catalog).findings)
    assert [done.trials for done in pack(folder)]
    assert not [*folder.glob("*.r1.json")]
    packed = verify(whole, catalog)
    assert sorted((finding.code, finding.what) for finding in packed.findings) == before
    assert {finding.code for finding in packed.findings} == {"seed"}


def test_columns_of_a_pack_that_say_something_else(folder, catalog):
    [done] = pack(folder)
    table = pyarrow.parquet.read_table(done.file)
    faster = pyarrow.array([value + 1 for value in table["round"].to_pylist()])
    table = table.set_column(table.schema.get_field_index("round"), table.schema.field("round"), faster)
    pyarrow.parquet.write_table(table, done.file, write_page_checksum=True)
    assert codes(folder, catalog) == {"packed"}


def test_raw_samples_are_read_beside_a_record_and_nowhere_else(folder, catalog):
    sidecar = record_file(folder).with_name(record_file(folder).name.replace(".json", ".samples.zst"))
    elsewhere = folder.parent / "elsewhere"
    sidecar.rename(elsewhere)
    os.symlink(elsewhere, sidecar)
    assert codes(folder, catalog) == {"sidecar"}
    sidecar.unlink()
    sidecar.write_bytes(b"not zstd")
    assert codes(folder, catalog) == {"sidecar"}


def test_a_suite_of_one_meter_needs_its_metrics_alone(folder, catalog):
    edit(folder / "suite.json", set_("meters", ["latency"]))
    for stack in SUITE.stacks:
        for number in (1, 2, 3):
            timed = ("train.step_s", "infer.prefill_s", "infer.decode_token_s", "infer.end_to_end_s")
            edit(
                record_file(folder, stack, number),
                lambda content: content.update(metrics={name: content["metrics"][name] for name in timed}),  # noqa: B023 - called at once
            )
    assert codes(folder, catalog) == set()


def test_the_same_is_said_once_with_three_files(folder, catalog):
    for stack in SUITE.stacks:
        for number in (1, 2, 3):
            edit(record_file(folder, stack, number), set_("git", None))
    lines = list(verify(folder.parent.parent, catalog).lines())
    assert lines[0] == "warning git: no commit is named: nobody can look up the code (6 times)"
    assert len(lines) == 1 + 3 + 2
    assert lines[-2].strip() == "and 3 more"
    assert lines[-1] == "6 records: 0 errors, 6 warnings"


def test_no_text_of_a_record_reaches_the_terminal_as_it_is(folder, catalog):
    edit(record_file(folder), set_("git", "\x1b[2Jevil\n```+dirty"))
    text = "\n".join(verify(folder.parent.parent, catalog).lines())
    assert "\x1b" not in text
    assert "?[2Jevil?```+dirty" in text


def test_every_code_is_tried_here():
    source = Path(__file__).read_text(encoding="utf-8")
    assert [code for code in SEVERITIES if f'"{code}"' not in source] == []
