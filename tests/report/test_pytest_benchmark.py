import json
import os

import numpy as np
import pytest
import zstandard
from effbench_plugins.reporters.pytest_benchmark import PytestBenchmarkReporter, statistics_of
from pytest_benchmark.cli import main
from pytest_benchmark.stats import Stats
from pytest_benchmark.storage.file import FileStorage

from effbench.board.leaderboard import build
from effbench.plugin import Summary
from effbench.plugin.errors import InputError
from effbench.store.machine import Machine
from tests.records import make_cell, make_record

STEPS = [9.0, 0.010, 0.011, 0.012]
"""The first is warm-up."""
LOOPS = [0.07, 0.14]
HOSTILE = "[red]x | <b>\x1b[31m\n# y"


def write(folder, record, samples=None):
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{record.cell_id}.r{record.round}"
    if samples is not None:
        record = record.model_copy(update={"samples": f"{stem}.samples.zst"})
        (folder / f"{stem}.samples.zst").write_bytes(zstandard.compress(json.dumps({"samples": samples}).encode()))
    (folder / f"{stem}.json").write_text(record.model_dump_json(exclude_none=True))


def timed(stack="full", number=1, slower=1.0, **changes):
    metrics = {
        "train.step_s": Summary(median=0.011 * slower, n=3, unit="s", warmup=1),
        "infer.decode_token_s": Summary(median=0.015 * slower, n=2, unit="s"),
    }
    fields = {"git": "0123456789ab", "cell": make_cell(stack), "metrics": metrics}
    return make_record(stack, number, **fields | changes)


def samples(slower=1.0):
    return {"step": [slower * value for value in STEPS], "decode": [slower * value for value in LOOPS]}


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "results" / "machine" / "s"
    for number in (1, 2):
        write(folder, timed(number=number), samples())
    write(folder, timed(HOSTILE))
    machine = Machine(cpu="CPU", flags="f", cores=2, memory_gib=4, gpus=(), system="Linux x86_64")
    (folder.parent / "machine.json").write_text(machine.model_dump_json())
    return tmp_path / "results"


def exported(results):
    return json.loads(PytestBenchmarkReporter().render(build(results)))


def by_metric(content, stack="full"):
    return {b["extra_info"]["metric"]: b for b in content["benchmarks"] if b["params"]["stack"] == stack}


def test_raw_samples_are_pooled_without_warm_up(results):
    step = by_metric(exported(results))["train.step_s"]
    assert step["stats"]["rounds"] == 6
    assert step["stats"]["max"] == 0.012
    assert step["stats"]["median"] == pytest.approx(0.011)
    assert step["stats"]["iterations"] == 1
    assert step["extra_info"] | {"samples": "raw durations after warm-up", "effbench_rounds": 2} == step["extra_info"]


def test_a_decode_loop_is_an_iteration_per_token(results):
    token = by_metric(exported(results))["infer.decode_token_s"]
    assert token["stats"]["iterations"] == 7
    assert (token["stats"]["min"], token["stats"]["max"]) == pytest.approx((0.01, 0.02))


def test_without_all_samples_it_is_medians_and_says_so(results):
    folder = results / "machine" / "s"
    write(folder, timed(number=3, slower=2))
    write(folder, timed(number=4), samples={"step": "no list", "decode": [1]})
    found = by_metric(exported(results))
    for benchmark in found.values():
        assert benchmark["stats"]["rounds"] == 4
        assert benchmark["extra_info"]["samples"] == "one median per trial"
        assert benchmark["stats"]["iterations"] == 1
    assert found["train.step_s"]["stats"]["max"] == pytest.approx(0.022)


@pytest.mark.parametrize("median", [0.0, -1.0])
def test_a_time_per_token_that_is_none_gives_no_iterations(results, median):
    odd = Summary(median=median, n=2, unit="s")
    write(results / "machine" / "s", timed(number=3, metrics={"infer.decode_token_s": odd}), samples())
    token = by_metric(exported(results))["infer.decode_token_s"]
    assert token["extra_info"]["samples"] == "one median per trial"
    assert token["stats"]["rounds"] == 2


def test_disturbed_and_failed_trials_are_left_out(results):
    folder = results / "machine" / "s"
    write(folder, timed(number=3, dirty="others"), samples(9))
    write(folder, timed(number=4, status="crashed"), samples(9))
    assert by_metric(exported(results))["train.step_s"]["stats"]["rounds"] == 6


def test_machine_commit_and_time_are_those_of_the_records(results):
    files = list(results.rglob("*.r*.json"))
    for index, file in enumerate(sorted(files)):
        os.utime(file, (1_700_000_000 + index,) * 2)
    content = exported(results)
    assert content["machine_info"]["node"] == "machine"
    assert content["machine_info"]["cpu"] == {"brand_raw": "CPU", "count": 2, "arch": "x86_64"}
    assert content["commit_info"]["id"] == "0123456789ab"
    assert content["datetime"] == "2023-11-14T22:13:22+00:00"
    write(results / "machine" / "s", timed(number=3, git="ffff+dirty"), samples())
    commit = exported(results)["commit_info"]
    assert (commit["id"], commit["dirty"]) == ("several", True)


def test_a_cell_that_two_boards_show_is_exported_once(results):
    """On the board of a larger world size the baseline on a single rank stands beside the others."""
    folder = results / "machine" / "s"
    (folder / "suite.json").write_text(json.dumps({"baseline": "full"}))
    write(folder, timed("ddp", cell=make_cell("ddp", world_size=2)), samples())
    boards = build(results)
    assert any("reference" in board.trials for board in boards)
    names = [benchmark["fullname"] for benchmark in exported(results)["benchmarks"]]
    assert len(names) == len(set(names)) == 6


def test_one_file_is_of_one_machine(results):
    write(results / "other" / "s", timed(machine="other"))
    with pytest.raises(InputError, match=r"holds one machine.*machine, other"):
        PytestBenchmarkReporter().render(build(results))


@pytest.mark.parametrize("count", range(1, 13))
def test_statistics_are_those_of_pytest_benchmark(count):
    reference = Stats()
    data = np.random.default_rng(count).lognormal(0, 1, count).tolist()
    for value in data:
        reference.update(value)
    found, expected = statistics_of(data), reference.as_dict()
    assert found.pop("outliers") == expected.pop("outliers")
    assert found == pytest.approx(expected, rel=1e-12)


def test_pytest_benchmark_compares_two_exports(results, tmp_path, monkeypatch, capsys):
    slow = tmp_path / "slow" / "machine" / "s"
    write(slow, timed(slower=2), samples(2))
    for name, folder in (("0001_old", results), ("0002_new", tmp_path / "slow")):
        (tmp_path / f"{name}.json").write_bytes(PytestBenchmarkReporter().files(build(folder))["pytest-benchmark.json"])
    files = [str(tmp_path / f"{name}.json") for name in ("0001_old", "0002_new")]

    class Refusing:
        def warning(self, message):
            raise AssertionError(message)

    loaded = list(FileStorage(tmp_path / "storage", Refusing()).load_benchmarks(*files))
    assert len(loaded) == 4 + 2
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "sys.argv", ["pytest-benchmark", "--storage", str(tmp_path / "storage"), "compare", *files, "--between", "median,ops"]
    )
    main()
    shown = capsys.readouterr().out
    assert "benchmark 's: tiny-llama on docs, train step': 2 tests, 2 sources" in shown
    [line] = [line for line in shown.splitlines() if line.startswith("full s64 b2 float32, train step")]
    assert "+100.0%" in line
    assert "-50.0%" in line
    assert "\x1b" not in shown
