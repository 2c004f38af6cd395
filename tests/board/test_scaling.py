"""Growth of cost along the length, on records whose truth is known."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from effbench.board.frame import tidy
from effbench.board.leaderboard import build
from effbench.board.lengths import COSTS, crossover
from effbench.board.stats import ratio_interval
from effbench.plugin import Summary
from tests.records import make_cell, make_record

LENGTHS = (512, 1024, 2048, 4096, 8192)
SETTINGS = {"baseline": "full"}


def trials(costs, *, lengths=LENGTHS, rounds=3, noise=0.02, drift=0.3, seed=0, **changes):
    """Stack → cost by length (None: out of memory), the same for every metric. A round's drift is shared by its trials."""
    rng = np.random.default_rng(seed)
    for number in range(1, rounds + 1):
        for stack, cost in costs.items():
            for length in lengths:
                cell = make_cell(stack, seq_len=length, techniques=() if stack == "full" else ((stack, {}),), **changes)
                if cost(length) is None:
                    yield make_record(cell=cell, round_number=number, status="oom", error="no memory", metrics={}, quality=None)
                    continue
                values = {m: cost(length) * np.exp(drift * number + rng.normal(0, noise)) for m in COSTS}
                metrics = {m: Summary(median=v, n=10, unit="B" if "memory" in m else "s") for m, v in values.items()}
                yield make_record(cell=cell, round_number=number, metrics=metrics)


def board_of(records, **settings):
    [board] = build(tidy((Path("x.json"), record) for record in records), SETTINGS | settings)
    return board


def row_of(board, stack, metric="train.step_s"):
    [row] = board.scaling[(board.scaling["stack"] == stack) & (board.scaling["metric"] == metric)].to_dict("records")
    return row


def linear(length):
    return length / 1000


def quadratic(length):
    return (length / 1000) ** 2 / 4


def up_to(cost, longest):
    return lambda length: cost(length) if length <= longest else None


def dirtied(record, stack, number, length):
    at = (record.cell.stack, record.round, record.cell.seq_len) == (stack, number, length)
    return record.model_copy(update={"dirty": "other programs used 1.2 cores"}) if at else record


@pytest.mark.parametrize("metric", COSTS)
def test_exponents_and_classes_of_what_is_known(metric):
    board = board_of(trials({"full": quadratic, "lean": linear, "flat": lambda _: 3.0}))
    for stack, exponent, growth in (("full", 2, "n²"), ("lean", 1, "n"), ("flat", 0, "constant")):
        row = row_of(board, stack, metric)
        assert row["exponent"] == pytest.approx(exponent, abs=0.03)
        assert row["low"] < row["exponent"] < row["high"] < row["low"] + 0.2
        assert row["classes"] == growth
        assert (row["lengths"], row["rounds"]) == ("512, 1024, 2048, 4096, 8192", 3)


def test_a_constant_part_hides_a_square_from_the_exponent_and_not_from_the_class():
    row = row_of(board_of(trials({"full": lambda n: 20 + quadratic(n)}, noise=0.005)), "full")
    assert row["exponent"] < 0.5
    assert row["classes"] == "n²"


def test_what_lies_between_the_classes_is_marked_as_such():
    board = board_of(trials({"full": lambda n: linear(n) + quadratic(n)}, noise=0.001))
    assert row_of(board, "full")["classes"].startswith("≈ ")


def test_the_crossover_is_found_between_two_lengths():
    board = board_of(trials({"full": quadratic, "lean": lambda n: 3 * quadratic(1000) * linear(n)}))
    row = row_of(board, "lean")
    assert row["crossover_low"] < 3000 < row["crossover_high"]
    assert row["crossover"] == pytest.approx(3000, rel=0.05)
    assert row["crossover_words"].endswith("]")


def test_a_crossover_is_exact_where_both_are_powers_of_the_length():
    row = row_of(board_of(trials({"full": quadratic, "lean": lambda n: 0.75 * linear(n)}, noise=0)), "lean")
    assert row["crossover"] == pytest.approx(3000)
    assert row["crossover_words"] == "3000"


@pytest.mark.parametrize(
    ("cost", "words"),
    [
        (lambda n: 0.5 * quadratic(n), "≤512"),
        (lambda n: 1.5 * quadratic(n), ">8192"),
        (up_to(lambda n: 1.5 * quadratic(n), 4096), ">4096; missing from 8192"),
        (up_to(lambda n: 0.5 * quadratic(n), 2048), "≤512; missing from 4096"),
    ],
)
def test_what_does_not_cross_is_said_and_is_no_number(cost, words):
    row = row_of(board_of(trials({"full": quadratic, "other": cost})), "other")
    assert row["crossover_words"] == words
    assert pd.isna([row["crossover"], row["crossover_low"], row["crossover_high"]]).all()


def test_beyond_the_baseline_a_stack_is_alone():
    board = board_of(trials({"full": up_to(quadratic, 2048), "lean": lambda n: 3 * linear(n)}))
    assert row_of(board, "lean")["crossover_words"] == ">2048; alone from 4096"
    assert row_of(board, "full")["lengths"] == "512, 1024, 2048"
    of_lean = (board.by_length["stack"] == "lean") & (board.by_length["metric"] == "train.step_s")
    ratios = board.by_length[of_lean].set_index("seq_len")
    assert ratios["ratio"].notna().to_dict() == {n: n <= 2048 for n in LENGTHS}
    assert ratios["value"].notna().all()


@pytest.mark.parametrize(
    ("costs", "words"),
    [
        ({"lean": linear}, "baseline not measured"),
        ({"full": up_to(linear, 512), "lean": lambda n: linear(n) if n > 512 else None}, "no length in common"),
    ],
)
def test_without_a_common_length_nothing_is_compared(costs, words):
    board = board_of(trials(costs))
    assert row_of(board, "lean")["crossover_words"] == words
    assert row_of(board, "lean")["classes"] == "n"


def test_sessions_are_never_paired():
    records = [r.model_copy(update={"session": r.cell.stack}) for r in trials({"full": quadratic, "lean": linear})]
    assert row_of(board_of(records), "lean")["crossover_words"] == "no length in common"


def test_dearer_again_at_the_end_is_no_crossover():
    found = {n: ratio_interval(np.log([r, r, r])) for n, r in ((512, 0.5), (1024, 0.8), (2048, 1.2))}
    assert crossover(found).words == ">2048"


@pytest.mark.parametrize("last", [(-0.5, -0.5, 0.01), (-0.02, -0.01, 0.02)])
def test_where_rounds_disagree_the_interval_is_open(last):
    logs = {512: (0.5, 0.5, 0.5), 2048: (0.1, 0.11, 0.12), 8192: last}
    found = crossover({n: ratio_interval(np.array(values)) for n, values in logs.items()})
    assert 2048 < found.estimate < 8192
    assert found.words.endswith(", >8192]")
    assert found.columns()["crossover_high"] is None


def test_equal_stacks_have_no_clear_crossover():
    row = row_of(board_of(trials({"full": linear, "same": linear}, seed=1)), "same")
    assert row["crossover_words"] == "unclear"
    assert pd.isna(row["crossover"])


def test_one_round_has_an_exponent_and_a_crossover_without_intervals_and_no_class():
    row = row_of(board_of(trials({"full": quadratic, "lean": linear}, rounds=1)), "lean")
    assert row["exponent"] == pytest.approx(1, abs=0.05)
    assert pd.isna([row["low"], row["crossover_low"]]).all()
    assert row["classes"] == ""
    assert row["crossover_words"].isdigit()


def test_a_missing_length_is_named_and_fewer_than_three_are_not_fitted():
    costs = {"full": quadratic, "short": up_to(linear, 2048), "shorter": up_to(linear, 1024)}
    board = board_of(trials(costs))
    assert row_of(board, "short")["lengths"] == "512, 1024, 2048"
    assert row_of(board, "short")["low"] < 1 < row_of(board, "short")["high"]
    assert np.isnan(row_of(board, "shorter")["exponent"])
    assert "how cost grows is fitted over the lengths 512, 1024, 2048, 4096, 8192" in board.notes
    assert "`short`: fitted over 512, 1024, 2048" in board.notes
    assert "`shorter`: measured at fewer than 3 of them, so no fit" in board.notes


def test_a_round_without_one_of_the_lengths_is_left_out():
    records = [dirtied(r, "full", 2, 8192) for r in trials({"full": quadratic, "lean": linear}, rounds=4)]
    board = board_of(records)
    assert row_of(board, "full")["rounds"] == 3
    assert row_of(board, "full")["lengths"].endswith("8192")
    assert row_of(board, "full", "train.peak_memory_bytes")["rounds"] == 4
    rounds = board.by_length.set_index(["stack", "metric", "seq_len"])["rounds"]
    assert (rounds["lean", "train.step_s", 8192], rounds["lean", "train.step_s", 4096]) == (3, 4)


def test_never_all_lengths_in_one_round_is_no_fit():
    records = [dirtied(r, "lean", r.round, LENGTHS[r.round]) for r in trials({"full": quadratic, "lean": linear})]
    board = board_of(records)
    assert np.isnan(row_of(board, "lean")["exponent"])
    assert any(
        "`lean`: train.step_s" in note and "never measured at all its lengths in one round" in note for note in board.notes
    )


def test_the_suite_says_from_where_on_costs_are_fitted():
    board = board_of(trials({"full": lambda n: linear(max(n, 1500))}), fit_from=2000)
    row = row_of(board, "full")
    assert row["lengths"] == "2048, 4096, 8192"
    assert row["low"] < 1 < row["high"]
    assert set(board.by_length["seq_len"]) == set(LENGTHS)


def test_where_too_few_lengths_remain_the_board_says_from_where_on_it_fits():
    board = board_of(trials({"full": linear}), fit_from=4096)
    assert np.isnan(row_of(board, "full")["exponent"])
    assert "how cost grows is fitted to 3 lengths or more from 4096 on, all in one round: no stack has them" in board.notes


def test_batch_sizes_are_apart():
    small = trials({"full": linear, "lean": linear}, batch_size=1)
    large = trials({"full": lambda n: 100 * quadratic(n), "lean": linear}, batch_size=8)
    board = board_of([*small, *large])
    found = board.scaling[board.scaling["metric"] == "train.step_s"].set_index(["stack", "batch_size"])
    assert found["classes"].to_dict() == {("full", 1): "n", ("full", 8): "n²", ("lean", 1): "n", ("lean", 8): "n"}
    assert found.loc[("lean", 8), "crossover_words"] == "≤512"


def test_ratios_by_length():
    board = board_of(trials({"full": quadratic, "lean": linear}))
    ratios = board.by_length.set_index(["stack", "metric", "seq_len"])
    for length in LENGTHS:
        row = ratios.loc[("lean", "infer.prefill_s", length)]
        assert row["low"] < linear(length) / quadratic(length) < row["high"]
        assert row["rounds"] == 3
    assert (ratios.loc["full"]["ratio"] == 1).all()


def test_two_lengths_have_none_of_it():
    board = board_of(trials({"full": quadratic, "lean": linear}, lengths=LENGTHS[:2]))
    assert board.scaling is None
    assert board.by_length is None
    assert not any("grow" in note for note in board.notes)


@pytest.mark.parametrize(
    ("cost", "said"),
    [(linear, True), (lambda n: 20 + linear(n), True), (quadratic, False), (lambda n: 50 + quadratic(n), False)],
)
def test_linear_memory_of_the_baseline_is_said(cost, said):
    board = board_of(trials({"full": cost, "lean": linear}, noise=0.002))
    notes = [note for note in board.notes if "it gains in time" in note]
    assert len(notes) == said
    assert all("in training" in note and "in inference" in note for note in notes)


def test_of_too_few_rounds_nothing_is_said_about_memory():
    board = board_of(trials({"full": linear, "lean": linear}, rounds=2, noise=0.0002))
    assert not any("it gains in time" in note for note in board.notes)
