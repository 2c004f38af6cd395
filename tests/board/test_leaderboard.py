import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import zstandard

from effbench.board.frame import tidy
from effbench.board.leaderboard import build
from effbench.plugin import Summary
from effbench.store.record import Fingerprint, QualityScores
from tests.records import make_cell, make_record

SETTINGS = {"baseline": "full", "delta": 0.02, "ranking": {"by": "train.tokens_per_s"}, "quality": {"floor": 1.05}}
SPEEDS = {"full": 1000, "fast": 2000, "same": 1000}


def trials(speeds=SPEEDS, rounds=3, shapes=(64,), noise=0.002, **changes):
    rng = np.random.default_rng(0)
    for number in range(1, rounds + 1):
        for seq_len in shapes:
            drift = 1 + 0.5 * number  # shared by a round: pairing must take it out
            for stack, speed in speeds.items():
                techniques = () if stack == "full" else ((stack, {}),)
                cell = make_cell(stack, seq_len=seq_len, techniques=techniques)
                yield make_record(
                    cell=cell, round_number=number, tokens_per_s=speed * drift * np.exp(rng.normal(0, noise)), **changes
                )


def board_of(records, settings=SETTINGS):
    boards = build(tidy((Path(f"{r.cell_id}.r{r.round}.json"), r) for r in records), settings)
    assert len(boards) == 1
    return boards[0]


def rows_of(board):
    return board.rows.set_index("stack")


def test_ratios_verdicts_and_ranks():
    board = board_of(trials())
    rows = rows_of(board)
    assert rows.loc["fast", "train_speed_ratio"] == pytest.approx(2, rel=0.02)
    assert rows["train_speed_verdict"].to_dict() == {"fast": "FASTER", "full": "baseline", "same": "SAME"}
    assert rows.loc["fast", "decode_speed_verdict"] == "FASTER"
    assert rows["rank"].to_dict() == {"fast": "1", "full": "2–3", "same": "2–3"}
    assert rows.loc["fast", "trainable_verdict"] == "SAME"
    assert board.rounds == (3, 3)
    assert not board.notes


def test_what_sees_later_tokens_is_shown_and_not_ranked():
    leak = "later tokens move the borders"
    records = [r.model_copy(update={"leaks": leak}) if r.cell.stack == "fast" else r for r in trials()]
    board = board_of(records)
    rows = rows_of(board)
    assert pd.isna(rows.loc["fast", "rank"])
    assert rows.loc["fast", "status"] == "LEAKS THE FUTURE"
    assert rows.loc["fast", "train_speed_ratio"] == pytest.approx(2, rel=0.02)
    assert any(leak in note and "`fast` LEAKS THE FUTURE" in note for note in board.notes)
    assert rows["rank"].drop("fast").to_dict() == {"full": "1–2", "same": "1–2"}


def test_one_round_is_a_provisional_board():
    board = board_of(trials(rounds=1))
    rows = rows_of(board)
    assert rows.loc["fast", "train_speed_ratio"] == pytest.approx(2, rel=0.02)
    assert rows["train_speed_low"].isna().all()
    assert set(rows["train_speed_verdict"]) == {"UNCLEAR", "baseline"}
    assert set(rows["rank"]) == {"1–3"}
    assert any("1 round" in note for note in board.notes)


def test_only_cells_that_all_completed_are_compared():
    records = []
    for record in trials(shapes=(64, 128)):
        change = {}
        if (record.cell.stack, record.cell.seq_len) == ("fast", 128):
            change = {"status": "oom", "metrics": {}, "error": "Traceback\nMemoryError", "quality": None}
        elif (record.cell.stack, record.cell.seq_len) == ("same", 128):
            speed = record.metrics["train.tokens_per_s"].median
            change = {"metrics": {"train.tokens_per_s": Summary(median=10 * speed, unit="tokens/s")}}
        records.append(record.model_copy(update=change))
    board = board_of(records)
    rows = rows_of(board)
    assert rows.loc["same", "train_speed_ratio"] == pytest.approx(1, rel=0.02)
    assert rows.loc["fast", "cells"] == "1/2"
    assert rows.loc["fast", "status"] == "1 oom"
    assert "1 of 2 cells of `fast`: oom (MemoryError)" in board.notes
    assert any("1 of 2 cells, those that all stacks completed" in note for note in board.notes)


def test_a_stack_that_never_finishes_takes_nothing_from_the_others():
    lost = make_record(cell=make_cell("lost", techniques=(("x", {}),)), status="failed", metrics={}, quality=None)
    rows = rows_of(board_of([*trials(), lost]))
    assert rows.loc["fast", "train_speed_verdict"] == "FASTER"
    assert rows.loc["lost", ["rank", "train_speed", "train_speed_ratio", "quality"]].isna().all()
    assert rows.loc["lost", "status"] == "1 failed"
    assert rows.loc["lost", "cells"] == "0/1"


def test_no_baseline_leaves_ratios_out_and_says_so():
    board = board_of(r for r in trials() if r.cell.stack != "full")
    assert board.rows["train_speed_ratio"].isna().all()
    assert rows_of(board)["rank"].to_dict() == {"fast": "1", "same": "2"}
    assert any("baseline `full`" in note for note in board.notes)


def test_sessions_are_never_paired():
    records = [r.model_copy(update={"session": r.cell.stack}) for r in trials()]
    board = board_of(records)
    assert rows_of(board).loc["fast"].filter(like="_speed_ratio").isna().all()
    assert set(board.rows["rank"]) == {"1–3"}
    assert any("share no complete round of one session" in note for note in board.notes)


def test_older_code_is_counted_and_left_out():
    old = Fingerprint(techniques={}, weights="w", data="d", versions={"torch": "2.11.0"})
    records = [r.model_copy(update={"fingerprint": old}) if r.round > 3 else r for r in trials(rounds=5)]
    board = board_of(records)
    assert board.rounds == (3, 3)
    assert "6 trials of older code not shown" in board.notes


@pytest.mark.parametrize("change", [{"weights": "other"}, {"methodology": "0"}])
def test_other_weights_and_methodology_get_their_own_table(change):
    other = Fingerprint(techniques={}, weights="w", data="d", versions={}).model_copy(update=change)
    records = [*trials({"full": 1000}), *trials({"fast": 2000}, fingerprint=other)]
    boards = build(tidy((Path("x.json"), r) for r in records), SETTINGS)
    assert len(boards) == 2
    assert all(next(iter(change)) in board.title for board in boards)


def test_machines_and_settings_get_their_own_table():
    records = [*trials({"full": 1000}), *trials({"full": 1000}, machine="m2")]
    slow = make_cell("full", steps=99)
    boards = build(tidy((Path("x.json"), r) for r in [*records, make_record(cell=slow)]), SETTINGS)
    assert sorted((b.machine, "steps 99" in b.title) for b in boards) == [("m2", False), ("machine", False), ("machine", True)]


def test_option_axes_are_rows_and_share_the_baseline():
    records = list(trials({"full": 1000}))
    for rank, speed in ((4, 3000), (16, 2000)):
        cell = make_cell("lora", techniques=(("lora", {"rank": rank}),), option_axes={"lora.rank": rank})
        records += [r.model_copy(update={"cell": cell, "cell_id": cell.id}) for r in trials({"full": speed})]
    rows = rows_of(board_of(records))
    assert rows.loc["lora rank=4", "train_speed_ratio"] == pytest.approx(3, rel=0.02)
    assert rows.loc["lora rank=16", "train_speed_ratio"] == pytest.approx(2, rel=0.02)
    assert rows.loc["lora rank=4", "rank"] == "1"


def test_changed_learning_rates_are_not_averaged():
    cell = make_cell("fast", lr=9.0, techniques=(("fast", {}),))
    records = [*trials(), make_record(cell=cell, round_number=1)]
    assert sum(label.startswith("fast #") for label in board_of(records).rows["stack"]) == 2


def test_exact_counts_need_one_round_only():
    small = {"parameters.trainable": Summary(median=20_000, unit="")}
    records = [make_record(), make_record(cell=make_cell("lora", techniques=(("lora", {}),)), metrics=small)]
    rows = rows_of(board_of(records))
    assert rows.loc["lora", "trainable_ratio"] == 0.01
    assert rows.loc["lora", "trainable"] == 20_000
    assert rows.loc["lora", "trainable_verdict"] == "SMALLER"


def test_infer_only_suite():
    infer = {"infer.prefill_tokens_per_s": Summary(median=10, unit="tokens/s")}
    records = [make_record(metrics=infer, quality=None, phases={"train": "skipped: not in the suite", "infer": "ok"})]
    board = board_of(records, {"baseline": "full"})
    assert board.ranked_by == "infer.prefill_tokens_per_s"
    assert board.rows["rank"].tolist() == ["1"]
    assert board.rows["quality"].isna().all()
    assert "`full`: train skipped: not in the suite" in board.notes


def test_below_the_quality_floor_is_shown_and_not_ranked():
    bad = make_cell("bad", techniques=(("bad", {}),))
    silent = make_cell("silent", techniques=(("silent", {}),))
    records = [*trials(), *(make_record(cell=bad, round_number=r, tokens_per_s=9e9, bits=5.0) for r in (1, 2, 3))]
    records += [make_record(cell=silent, round_number=r, quality=None) for r in (1, 2, 3)]
    rows = rows_of(board_of(records))
    assert rows.loc["bad", "status"] == "below quality floor"
    assert rows.loc["silent", "status"] == "no quality measured"
    assert rows.loc[["bad", "silent"], "rank"].isna().all()
    assert rows.loc["fast", "rank"] == "1"
    assert rows.index[-2:].tolist() == ["bad", "silent"]


def test_quality_on_other_text_is_not_compared():
    other = Fingerprint(techniques={}, weights="w", data="other", versions={})
    board = board_of([*trials({"full": 1000}), *trials({"fast": 2000}, fingerprint=other)])
    assert np.isnan(rows_of(board).loc["fast", "quality"])
    assert rows_of(board).loc["fast", "train_speed_verdict"] == "FASTER"
    assert any("other text" in note for note in board.notes)


def write(folder, record, scores):
    stem = f"{record.cell_id}.r{record.round}"
    quality = {"names": [str(i) for i in range(len(scores))], "weights": [1.0] * len(scores)}
    content = {"samples": {}, "quality": quality | {"per_sample": {"bits_per_byte": scores}}}
    (folder / f"{stem}.samples.zst").write_bytes(zstandard.compress(json.dumps(content).encode()))
    record = record.model_copy(update={"samples": f"{stem}.samples.zst"})
    (folder / f"{stem}.json").write_text(record.model_dump_json())


@pytest.fixture
def results(tmp_path):
    rng, folder = np.random.default_rng(0), tmp_path / "machine" / "s"
    folder.mkdir(parents=True)
    (folder / "suite.json").write_text(json.dumps(SETTINGS | {"name": "s", "rounds": 3}))
    for record in trials():
        shift = {"full": 0.0, "fast": 0.5, "same": 0.0}[record.cell.stack]
        scores = (np.linspace(2, 3, 40) + shift + rng.normal(0, 0.005, 40)).tolist()
        quality = QualityScores(scores={"bits_per_byte": float(np.mean(scores))}, n=40)
        write(folder, record.model_copy(update={"quality": quality}), scores)
    return tmp_path


def test_quality_difference_from_the_sidecars(results):
    board = build(results)[0]
    rows = rows_of(board)
    assert rows["quality_verdict"].to_dict() == {"fast": "WORSE", "full": "baseline", "same": "SAME"}
    assert rows.loc["fast", "quality_low"] < 0.5 < rows.loc["fast", "quality_high"]
    assert rows.loc["fast", "status"] == "below quality floor"
    assert board.baseline == "full"


def test_a_broken_sidecar_costs_the_interval_alone(results):
    for file in results.rglob("*.zst"):
        file.write_bytes(b"junk")
    rows = rows_of(build(results)[0])
    assert rows.loc["fast", "quality_difference"] == pytest.approx(0.5, abs=0.01)
    assert rows.loc["fast", "quality_verdict"] == "UNCLEAR"


@pytest.mark.parametrize("text", ['{"delta": "much"}', "{", "[" * 100_000])
def test_broken_settings_are_warned_about(results, text):
    (results / "machine" / "s" / "suite.json").write_text(text)
    with pytest.warns(UserWarning, match=r"suite\.json"):
        board = build(results)[0]
    assert board.baseline == "full"  # the untouched stack


def test_a_column_that_is_no_metric_breaks_no_board(results):
    (results / "machine" / "s" / "suite.json").write_text(json.dumps(SETTINGS | {"columns": ["rank"]}))
    with pytest.warns(UserWarning, match=r"suite\.json"):
        assert not build(results)[0].extra_columns


def test_nothing_gives_no_boards(tmp_path):
    assert build(tmp_path) == []


def test_dirty_trials_keep_their_quality_and_counts_and_lose_their_timings():
    records = list(trials(rounds=4))
    last = next(i for i, r in enumerate(records) if (r.cell.stack, r.round) == ("fast", 4))
    slow = records[last].metrics | {"train.tokens_per_s": Summary(median=1.0, unit="tokens/s")}
    records[last] = records[last].model_copy(update={"dirty": "other programs used 1.2 cores", "metrics": slow})
    board = board_of(records)
    rows = rows_of(board)
    assert rows.loc["fast", "train_speed_ratio"] == pytest.approx(2, rel=0.02)
    assert rows.loc["fast", "train_speed_verdict"] == "FASTER"
    assert rows.loc["fast", "rounds"] == 4
    assert "1 of 4 trials of `fast`: timings left out, disturbed (other programs used 1.2 cores)" in board.notes


def ranked(size, speed, stack):
    techniques = () if stack == "full" else ((stack, {}),)
    cell = make_cell(stack, techniques=techniques, world_size=size)
    return [make_record(cell=cell, round_number=n, tokens_per_s=speed * np.exp(0.001 * n * size)) for n in (1, 2, 3)]


def test_a_larger_world_size_is_compared_with_the_baseline_at_one_and_not_ranked_with_it():
    records = [*ranked(1, 1000, "full"), *ranked(1, 1000, "ddp"), *ranked(2, 1500, "ddp")]
    boards = build(tidy((Path(f"{r.cell_id}.r{r.round}.json"), r) for r in records), SETTINGS)
    one, two = sorted(boards, key=lambda board: board.world_size)
    assert set(one.rows["stack"]) == {"full", "ddp"}
    rows = rows_of(two)
    assert set(rows.index) == {"full (world size 1)", "ddp"}
    assert rows.loc["ddp", "train_speed_ratio"] == pytest.approx(1.5, rel=0.01)
    assert rows.loc["ddp", "rank"] == "1"
    assert rows.loc[["full (world size 1)"], "rank"].isna().all()
    assert any("2 ranks together over the baseline's single one" in note for note in two.notes)
