"""The quick suite, shrunk, through the real command line."""

import csv
import io
import json

import pytest

import effbench as package
from tests.end_to_end.conftest import effbench, records

SHRUNK = [
    "axes.seq_len=[32]",
    "axes.batch_size=[2]",
    "training.steps=3",
    "quality.documents=2",
    "sampling.max_seconds=0.2",
    "limits.dirty_repeats=0",
]
SETTINGS = [part for setting in SHRUNK for part in ("--set", setting)]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quick")
    done = effbench("run", "quick", *SETTINGS, "--rounds", "2", cwd=folder, check=0)
    return folder, done, records(folder / "effbench-results")


def test_every_trial_is_ok_and_complete(outcome):
    _, _, found = outcome
    assert len(found) == 12
    for record in found.values():
        assert record["status"] == "ok"
        assert set(record["phases"].values()) == {"ok"}
        assert record["quality"]["scores"]["bits_per_byte"] > 0
        assert record["quality"]["before"]["bits_per_byte"] > 0
        assert {"train.step_s", "infer.prefill_s", "infer.decode_token_s", "train.peak_memory_bytes"} <= set(record["metrics"])


def test_its_records_may_be_shared_but_for_the_round_that_is_missing(outcome):
    folder, _, _ = outcome
    report = json.loads(effbench("verify", "effbench-results", "--json", cwd=folder, check=1).stdout)
    errors = {finding["code"] for finding in report["findings"] if finding["severity"] == "error"}
    assert errors - {"mostly-dirty"} == {"rounds"}  # a busy machine may have disturbed them
    assert report["records"] == 12


def test_rounds_have_their_own_seed_and_share_it_between_stacks(outcome):
    _, _, found = outcome
    seeds = {number: {r["seed"] for (_, n), r in found.items() if n == number} for number in (1, 2)}
    assert all(len(s) == 1 for s in seeds.values())
    assert seeds[1] != seeds[2]


def test_counts_are_exact(outcome):
    _, _, found = outcome
    trainable = {stack: r["metrics"]["parameters.trainable"]["median"] for (stack, _), r in found.items()}
    layer = 8 * ((192 + 192) * 2 + (192 + 64) * 2 + (192 + 512) * 3)
    assert trainable["lora"] == 5 * layer
    assert trainable["full"] == trainable["pruned"] == trainable["bf16"]
    disk = {stack: r["metrics"]["checkpoint.bytes"]["median"] for (stack, _), r in found.items()}
    assert disk["int8"] < 0.35 * disk["full"]
    assert disk["lora"] == pytest.approx(disk["full"], rel=0.01)


def test_throughput_times_mean_time_is_the_volume(outcome):
    from pathlib import Path

    from effbench.plugin.sampling import warmup_length
    from effbench.store.store import read_samples

    folder, _, found = outcome
    for record in found.values():
        [sidecar] = Path(folder).rglob(record["samples"])
        steps = read_samples(sidecar)["samples"]["step"]
        kept = steps[warmup_length(steps) :]
        rate = record["metrics"]["train.tokens_per_s"]["median"]
        assert rate * sum(kept) / len(kept) == pytest.approx(2 * 32, rel=1e-3)


def test_it_ends_with_the_board_and_says_where_the_files_are(outcome):
    folder, done, _ = outcome
    for stack in ("full", "lora", "prune-lora-int8"):
        assert stack in done.stdout
    assert "LEADERBOARD.md and leaderboard.csv" in done.stdout
    [page] = (folder / "effbench-results").rglob("LEADERBOARD.md")
    assert "prune-lora-int8" in page.read_text()
    assert len(list((folder / "effbench-results").rglob("leaderboard.csv"))) == 1


def test_the_same_command_again_runs_nothing(outcome):
    folder, _, before = outcome
    again = effbench("run", "quick", *SETTINGS, "--rounds", "2", cwd=folder, check=0)
    assert "0 to run" in again.stdout
    assert records(folder / "effbench-results") == before


@pytest.mark.parametrize("name", ["table", "markdown", "csv", "json"])
def test_the_board_in_every_format(outcome, name):
    folder, _, _ = outcome
    text = effbench("board", "effbench-results", "--format", name, cwd=folder, check=0).stdout
    assert "prune-lora-int8" in text
    if name == "json":
        assert json.loads(text)
    if name == "csv":
        assert len(list(csv.DictReader(io.StringIO(text)))) == 6


def test_records_load_as_a_tidy_frame(outcome):
    folder, _, _ = outcome
    frame = package.load(folder / "effbench-results")
    steps = frame[frame.metric == "train.step_s"]
    assert len(steps) == 12
    assert set(steps["round"]) == {1, 2}
    assert (steps["value"] > 0).all()


def test_a_truncated_record_is_named_and_not_counted(outcome):
    folder, _, _ = outcome
    [machine] = [p for p in (folder / "effbench-results").iterdir() if p.is_dir()]
    bad = machine / "quick" / "truncated.json"
    bad.write_text('{"schema": 1, "cell')
    done = effbench("board", "effbench-results", cwd=folder, check=0)
    assert "truncated.json" in done.stderr
    assert "prune-lora-int8" in done.stdout
    bad.unlink()
