"""Boards of a choice of trials and rows, in slices, in another order, and over several models and workloads."""

from pathlib import Path

import pytest

from effbench.board.expression import parse
from effbench.board.frame import tidy
from effbench.board.leaderboard import build
from effbench.board.view import View
from effbench.plugin import Summary
from effbench.plugin.errors import InputError
from effbench.store.record import Fingerprint, QualityScores
from tests.board.test_leaderboard import SETTINGS, ranked, rows_of, trials
from tests.records import make_cell, make_record


def boards_of(records, where=None, settings=SETTINGS, **view):
    frame = tidy((Path(f"{r.cell_id}.r{r.round}.json"), r) for r in records)
    return build(frame, settings, View(where=where and parse(where), **view))


def moved(records, **cell):
    """The records, as those of another model, workload or other setting."""
    for record in records:
        other = record.cell.model_copy(update=cell)
        yield record.model_copy(update={"cell": other, "cell_id": other.id})


def with_ranks(lora={4: 3000, 16: 2000}):  # noqa: B006 - never changed
    records = list(trials())
    for rank, speed in lora.items():
        cell = make_cell("lora", techniques=(("lora", {"rank": rank}),), option_axes={"lora.rank": rank})
        records += [r.model_copy(update={"cell": cell, "cell_id": cell.id}) for r in trials({"full": speed})]
    return records


def two_places(**changes):
    """`fast` is twice as fast on docs, and eight times on code."""
    code = moved(trials({"full": 10, "fast": 80, "same": 10}), workload="code", steps=9)
    return [*trials(), *(r.model_copy(update=changes) for r in code)]


def test_a_filter_on_an_axis_chooses_trials_before_they_are_compared():
    records = [
        r.model_copy(
            update={"metrics": {"train.tokens_per_s": Summary(median=9 * r.metrics["train.tokens_per_s"].median, unit="")}}
        )
        if (r.cell.stack, r.cell.seq_len) == ("fast", 128)
        else r
        for r in trials(shapes=(64, 128))
    ]
    [whole] = boards_of(records)
    [part] = boards_of(records, "seq_len == 64")
    assert rows_of(whole).loc["fast", "train_speed_ratio"] == pytest.approx(6, rel=0.02)
    assert rows_of(part).loc["fast", "train_speed_ratio"] == pytest.approx(2, rel=0.02)
    assert rows_of(part).loc["fast", "cells"] == "1/1"
    assert any("seq_len == 64" in note for note in part.notes)


def test_the_baseline_of_every_value_stays():
    [board] = boards_of(with_ranks(), "lora.rank < 10")
    assert rows_of(board)["train_speed_verdict"].to_dict() == {"lora rank=4": "FASTER", "full": "baseline"}
    assert rows_of(board).loc["lora rank=4", "rank"] == "1"


def test_a_filter_on_a_column_hides_rows_and_keeps_ranks():
    [whole] = boards_of(trials())
    [board] = boards_of(trials(), "train_speed_verdict != 'FASTER'")
    assert set(board.rows["stack"]) == {"full", "same"}
    kept = rows_of(whole).drop("fast")
    assert rows_of(board)[["rank", "train_speed_ratio", "train_speed_low"]].equals(
        kept[["rank", "train_speed_ratio", "train_speed_low"]]
    )
    assert any(note.startswith("1 of 3 rows are hidden") for note in board.notes)


@pytest.mark.parametrize(("where", "stacks"), [("rank == 1", ["fast"]), ("rank >= 2", ["full", "same"]), ("rank < 0", [])])
def test_a_range_of_ranks_counts_as_its_best(where, stacks):
    [board] = boards_of(trials(), where)
    assert sorted(board.rows["stack"]) == stacks


def test_both_kinds_are_joined_by_and():
    [board] = boards_of(trials(shapes=(64, 128)), "stack != 'same' and seq_len == 128 and train_speed_ratio >= 1")
    assert sorted(board.rows["stack"]) == ["fast", "full"]
    assert rows_of(board).loc["fast", "cells"] == "1/1"


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("seq_len == 64 or stack == 'fast'", "join such conditions by `and`"),
        ("sek_len == 64", "did you mean 'seq_len'"),
        ("train_speed_ration > 1", "did you mean 'train_speed_ratio'"),
        ("1 < 2", "names nothing"),
        ("seq_len == '64'", "compared with"),
    ],
)
def test_what_cannot_be_filtered_by_is_one_line(where, words):
    with pytest.raises(InputError, match=words) as caught:
        boards_of(trials(), where)
    assert "\n" not in str(caught.value)


def test_a_filter_that_chooses_nothing_gives_no_boards():
    assert boards_of(trials(), "seq_len == 1") == []


def test_rounds_of_older_code_stay_out_where_rounds_are_chosen():
    old = Fingerprint(techniques={}, weights="w", data="d", versions={"torch": "2.11.0"})
    records = [r.model_copy(update={"fingerprint": old}) if r.round > 3 else r for r in trials(rounds=5)]
    assert boards_of(records, "round > 3") == []
    [board] = boards_of(records, "round > 1")
    assert board.rounds == (2, 2)


def test_a_larger_world_size_keeps_the_baseline_at_one_and_gets_the_only_board():
    records = [*ranked(1, 1000, "full"), *ranked(1, 1000, "ddp"), *ranked(2, 1500, "ddp")]
    [board] = boards_of(records, "world_size == 2")
    assert rows_of(board).loc["ddp", "train_speed_ratio"] == pytest.approx(1.5, rel=0.01)
    assert set(board.rows["stack"]) == {"full (world size 1)", "ddp"}


def test_rows_are_sorted_with_missing_last():
    lost = make_record(cell=make_cell("lost", techniques=(("x", {}),)), status="failed", metrics={}, quality=None)
    for sort, order in (
        ("train_speed_ratio", ["full", "same", "fast", "lost"]),
        ("train_speed_ratio:desc", ["fast", "same", "full", "lost"]),
        ("stack:desc", ["same", "lost", "full", "fast"]),
        ("rank:desc", ["full", "same", "fast", "lost"]),
    ):
        [board] = boards_of([*trials({"full": 1000, "fast": 2000, "same": 1010}, noise=0), lost], sort=sort)
        assert board.rows["stack"].tolist() == order
    for sort, words in (("train_speed:down", "expected COLUMN"), ("train_spede", "did you mean 'train_speed'")):
        with pytest.raises(InputError, match=words):
            boards_of(trials(), sort=sort)


def test_slices_are_boards_of_each_value():
    short, long = boards_of(trials(shapes=(64, 512)), by=("seq_len",))
    assert [board.slice for board in (short, long)] == [{"seq_len": "64"}, {"seq_len": "512"}]
    assert long.title.endswith("seq_len 512")
    assert rows_of(long).loc["fast", "cells"] == "1/1"
    assert {trial.shape.seq_len for row in long.table.rows for values in row.values.values() for trial in values} == {512}


def test_slices_by_an_option_have_the_baseline_each():
    boards = boards_of(with_ranks(), by=("lora.rank",))
    assert [sorted(board.rows["stack"]) for board in boards] == [["full", "lora rank=4"], ["full", "lora rank=16"]]
    assert all("`fast`, `same`: no lora.rank, and so in no slice by it" in board.notes for board in boards)


def test_slices_of_an_axis_that_nothing_has_are_the_whole():
    records = [*with_ranks(), *moved(trials(), suite="other")]
    assert [board.slice for board in boards_of(records, by=("lora.rank",)) if board.suite == "other"] == [{}]


def test_an_unknown_axis_is_named():
    with pytest.raises(InputError, match="unknown axis 'seqlen': did you mean 'seq_len'"):
        boards_of(trials(), by=("seqlen",))


def test_it_all_composes():
    boards = boards_of(
        trials(shapes=(64, 128, 512)), "seq_len > 64 and stack != 'same'", by=("seq_len", "dtype"), sort="train_speed_ratio"
    )
    assert [board.slice for board in boards] == [
        {"seq_len": "128", "dtype": "float32"},
        {"seq_len": "512", "dtype": "float32"},
    ]
    assert all(board.rows["stack"].tolist() == ["full", "fast"] for board in boards)


def test_an_aggregate_is_over_all_models_and_workloads():
    [board] = boards_of(two_places(), aggregate=True)
    assert board.title == "s: aggregate of 2 boards"
    assert rows_of(board).loc["fast", "train_speed_ratio"] == pytest.approx(4, rel=0.02)
    assert rows_of(board)["rank"].to_dict() == {"fast": "1", "full": "2–3", "same": "2–3"}
    assert board.workload == "code, docs"
    assert "train.tokens_per_s: 2 of 2 cells are such" in board.notes
    assert board.rows.filter(like="quality").isna().all(axis=None)
    assert any("never averaged" in note for note in board.notes)


def test_an_aggregate_is_over_common_cells_and_says_what_was_lost():
    records = [
        r.model_copy(update={"status": "oom", "metrics": {}, "quality": None})
        if (r.cell.stack, r.cell.workload) == ("fast", "code")
        else r
        for r in two_places()
    ]
    [board] = boards_of(records, aggregate=True)
    assert rows_of(board).loc["fast", "train_speed_ratio"] == pytest.approx(2, rel=0.02)
    assert "train.tokens_per_s: 1 of 2 cells are such" in board.notes
    assert "of these 2 cells `fast` has 1" in board.notes
    assert "1 of 2 cells of `fast`: oom" in board.notes


def test_a_disturbed_round_of_one_workload_does_not_cost_the_others_theirs():
    def disturbed(record):
        round_number = 1 if record.cell.workload == "docs" else 2
        return record.model_copy(update={"dirty": "others"}) if record.round == round_number else record

    four = [*trials(rounds=4), *moved(trials({"full": 10, "fast": 80, "same": 10}, rounds=4), workload="code")]
    [board] = boards_of(map(disturbed, four), aggregate=True)
    assert rows_of(board).loc["fast", "train_speed_ratio"] == pytest.approx(4, rel=0.02)
    assert rows_of(board).loc["fast", "train_speed_verdict"] == "FASTER"  # three rounds each, two in common


def test_what_may_not_be_ranked_somewhere_is_not_ranked_in_the_aggregate():
    records = [
        r.model_copy(update={"quality": QualityScores(scores={"bits_per_byte": 9.0}, n=4)})
        if (r.cell.stack, r.cell.workload) == ("fast", "code")
        else r
        for r in two_places()
    ]
    [board] = boards_of(records, aggregate=True)
    assert rows_of(board).loc["fast", "status"] == "below quality floor (tiny-llama on code)"
    assert rows_of(board)["rank"].drop("fast").tolist() == ["1–2", "1–2"]


def test_an_aggregate_of_one_place_is_its_board_with_its_quality():
    [board] = boards_of(trials(), aggregate=True)
    assert board.rows["quality"].notna().all()


def test_an_aggregate_never_mixes_settings_weights_or_machines():
    other = Fingerprint(techniques={}, weights="other", data="d", versions={})
    both = [*two_places(), *moved(trials(), steps=99)]
    assert len(boards_of(both, aggregate=True)) == 3  # 4 steps on docs, 9 on code, 99 on docs
    assert len(boards_of([*two_places(), *trials(session="b", machine="m2")], aggregate=True)) == 2
    assert len(boards_of(two_places(fingerprint=other), aggregate=True)) == 1  # each model and workload has its own weights
    mixed = [*two_places(), *moved(trials(fingerprint=other), batch_size=4)]
    assert len(boards_of(mixed, aggregate=True)) == 2


def test_learning_rates_of_workloads_are_no_variants_of_a_stack():
    records = [*trials(), *moved(trials(), workload="code", lr=9.0)]
    [board] = boards_of(records, aggregate=True)
    assert set(board.rows["stack"]) == {"full", "fast", "same"}


def test_aggregates_in_slices():
    boards = boards_of(two_places(), aggregate=True, by=("workload",))
    assert [board.slice for board in boards] == [{"workload": "code"}, {"workload": "docs"}]
    assert [round(float(rows_of(board).loc["fast", "train_speed_ratio"])) for board in boards] == [8, 2]
