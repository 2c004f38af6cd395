"""Rows whose score a constant prediction reaches too: marked, never ranked."""

import json

import numpy as np
import pytest
import zstandard

from effbench.board.leaderboard import build
from effbench.store.record import QualityScores
from tests.records import make_cell, make_record

SAMPLES = 200
CONSTANT = np.arange(SAMPLES) % 4 == 0
"""Right on every fourth sample."""


def sidecar(folder, record, right):
    quality = {
        "names": [f"d{i}" for i in range(SAMPLES)],
        "weights": [1.0] * SAMPLES,
        "per_sample": {"accuracy": right.astype(float).tolist()},
        "chance": {"accuracy": CONSTANT.astype(float).tolist()},
    }
    stem = f"{record.cell_id}.r{record.round}"
    (folder / f"{stem}.samples.zst").write_bytes(zstandard.compress(json.dumps({"quality": quality}).encode()))
    scores = QualityScores(scores={"accuracy": right.mean()}, chance={"accuracy": CONSTANT.mean()}, n=SAMPLES)
    record = record.model_copy(update={"samples": f"{stem}.samples.zst", "quality": scores})
    (folder / f"{stem}.json").write_text(record.model_dump_json())


def board_of(folder, stacks, rounds=3, **quality):
    (folder / "suite.json").write_text(json.dumps({"baseline": "full", "quality": {"metric": "accuracy"} | quality}))
    for number in range(1, rounds + 1):
        for stack, right in stacks.items():
            cell = make_cell(stack, techniques=() if stack == "full" else ((stack, {}),))
            sidecar(folder, make_record(cell=cell, round_number=number, tokens_per_s=1000 + number), right)
    [board] = build(folder)
    return board, board.rows.set_index("stack")


def guesses(share, seed):
    """Right on this share of the samples, whichever they are."""
    return np.random.default_rng(seed).permutation(np.arange(SAMPLES) < share * SAMPLES)


KNOWS = np.arange(SAMPLES) < 190


@pytest.mark.parametrize("rounds", [1, 3])
def test_what_a_constant_reaches_too_is_marked_and_not_ranked(tmp_path, rounds):
    stacks = {"full": KNOWS, "constant": CONSTANT, "lucky": guesses(0.28, 1), "lost": guesses(0.20, 2), "half": guesses(0.5, 3)}
    board, rows = board_of(tmp_path, stacks, rounds)
    assert rows["status"].to_dict() == {
        "full": "ok", "half": "ok", "constant": "at chance", "lucky": "at chance", "lost": "at chance"
    }  # fmt: skip
    assert set(rows.index[rows["rank"].notna()]) == {"full", "half"}
    assert set(rows.loc[["full", "half"], "rank"]) == {"1–2"}
    assert (rows["quality_chance"] == 0.25).all()
    [note] = [note for note in board.notes if "chance" in note]
    assert note.startswith("chance is accuracy 0.250")
    assert note.endswith("not ranked: `constant`, `lost`, `lucky`")


def test_what_has_no_score_beside_rows_that_have_one_is_not_ranked(tmp_path):
    cell = make_cell("fast", techniques=(("fast", {}),))
    record = make_record(cell=cell, quality=None, tokens_per_s=9000)
    (tmp_path / f"{record.cell_id}.r1.json").write_text(record.model_dump_json())
    _, rows = board_of(tmp_path, {"full": KNOWS})
    assert rows["status"].to_dict() == {"full": "ok", "fast": "no score to tell it from chance"}
    assert list(rows.index[rows["rank"].notna()]) == ["full"]


def test_a_baseline_at_chance_is_said_to_show_nothing(tmp_path):
    board, rows = board_of(tmp_path, {"full": guesses(0.27, 1), "other": KNOWS})
    assert rows.loc["full", "status"] == "at chance"
    assert any("baseline itself is at chance" in note for note in board.notes)


def test_a_score_of_nothing_right_is_a_score(tmp_path):
    _, rows = board_of(tmp_path, {"full": KNOWS, "broken": np.zeros(SAMPLES)}, floor=1.05)
    assert rows.loc["broken", "quality"] == 0.0
    assert rows.loc["broken", "status"] == "at chance"


def test_of_accuracies_the_higher_is_better(tmp_path):
    _, rows = board_of(tmp_path, {"full": guesses(0.6, 1), "more": KNOWS, "less": guesses(0.45, 2)}, floor=1.05)
    assert rows["quality_verdict"].to_dict() == {"full": "baseline", "more": "BETTER", "less": "WORSE"}
    assert rows["status"].to_dict() == {"full": "ok", "more": "ok", "less": "below quality floor"}


def test_without_per_sample_scores_nothing_is_clearly_above_chance(tmp_path):
    _, rows = board_of(tmp_path, {"full": KNOWS})
    assert rows.loc["full", "status"] == "ok"
    for file in tmp_path.glob("*.zst"):
        file.write_bytes(b"junk")
    [board] = build(tmp_path)
    assert list(board.rows["status"]) == ["no per-sample scores to tell it from chance"]
