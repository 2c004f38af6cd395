"""Fronts: who is on them, how surely, who is in the way, and what is never on one."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import stdtr

from effbench.board import noise as noise_module
from effbench.board.leaderboard import build
from effbench.board.noise import SharedNoise
from effbench.board.objectives import objective
from effbench.board.pareto import default_metrics, fronts_of, pareto
from effbench.board.rows import Shape, log_ratios
from effbench.board.stats import quality_draws, ratio_interval
from effbench.plugin import Summary
from effbench.plugin.errors import InputError
from effbench.store.record import QualityScores
from tests.board.test_leaderboard import SETTINGS, board_of, trials, write
from tests.board.test_view import boards_of
from tests.records import make_cell, make_record

SPEED, MEMORY = "train.tokens_per_s", "train.peak_memory_bytes"


def measured(stacks, rounds=5, noise=0.002, seed=0, **changes):
    """Records of stacks with a speed and a memory peak each, noise on both."""
    rng = np.random.default_rng(seed)
    for number in range(1, rounds + 1):
        drift = 1 + 0.5 * number
        for stack, (speed, memory) in stacks.items():
            cell = make_cell(stack, techniques=() if stack == "full" else ((stack, {}),))
            metrics = {
                SPEED: Summary(median=speed * drift * np.exp(rng.normal(0, noise)), unit="tokens/s"),
                MEMORY: Summary(median=memory * np.exp(rng.normal(0, noise)), unit="B"),
                "parameters.trainable": Summary(median=memory, unit=""),
            }
            yield make_record(cell=cell, round_number=number, metrics=metrics, **changes)


FOUR = {"full": (1000, 1000), "small": (800, 100), "fast": (3000, 5000), "both": (2000, 300), "bad": (900, 2000)}


def rows_of(front):
    return front.rows.set_index("stack")


def test_a_front_its_knee_and_who_dominates():
    front = pareto(board_of(measured(FOUR)), ["train_speed", "train_memory"])
    rows = rows_of(front)
    assert rows["on_front"].to_dict() == {"both": True, "fast": True, "small": True, "bad": False, "full": False}
    assert rows.index[:3].tolist() == ["both", "fast", "small"]
    assert rows["probability"].round(2).to_dict() == {"both": 1, "fast": 1, "small": 1, "bad": 0, "full": 0}
    assert front.knee == "both"
    assert rows.index[rows["knee"]].tolist() == ["both"]
    assert rows.loc["full", "dominated_by"] == "both"
    assert rows.loc["bad", "dominated_by"] == "both, full"
    assert rows.loc[["bad", "full"], "dominated_clearly"].all()
    assert rows.loc["small", "dominated_by"] == ""
    assert front.better == ("higher", "lower")


def test_values_are_those_of_the_board_and_names_mean_the_same():
    board = board_of(measured(FOUR))
    own = board.rows.set_index("stack")
    for names in (("train_speed", "train_memory"), (SPEED, MEMORY)):
        rows = rows_of(pareto(board, names))
        assert rows[names[0]].to_dict() == own["train_speed"].to_dict()
        assert rows[names[1]].to_dict() == own["train_memory"].to_dict()
    assert rows_of(pareto(board, [SPEED, "trainable"])).loc["small", "trainable"] == 100


def test_a_direction_can_be_given():
    front = pareto(board_of(measured(FOUR)), ["train_speed:lower", "train_memory:higher"])
    assert rows_of(front).query("on_front").index.tolist() == ["bad", "fast", "small"]


def test_three_metrics():
    rows = rows_of(pareto(board_of(measured(FOUR)), ["train_speed", "train_memory", "trainable:higher"]))
    assert rows.loc[["fast", "full", "bad"], "on_front"].tolist() == [True, True, True]


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        (["train_speed"], "two different metrics"),
        ([], "two different metrics"),
        (["train_speed", SPEED], "two different metrics"),
        (["train_speed", "train_memroy"], "did you mean 'train_memory'"),
        (["train_speed", "decode_speed"], "unknown metric 'decode_speed'"),
        (["train_speed", "train_memory:best"], "lower or higher"),
    ],
)
def test_metrics_that_make_no_front(metrics, words):
    with pytest.raises(InputError, match=words):
        pareto(board_of(measured(FOUR)), metrics)


def test_each_marginal_is_the_t_interval_of_the_board(monkeypatch):
    monkeypatch.setattr(noise_module, "DRAWS", 100_000)
    rng = np.random.default_rng(1)
    for count in (3, 8):
        logs = rng.normal(0.3, 0.1, count)
        draws = logs.mean() + SharedNoise(range(count)).of_rounds(dict(enumerate(logs)))
        for level in (0.5, 0.95):
            expected = ratio_interval(logs, level)
            low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
            width = np.log(expected.high / expected.low)
            assert [low, high] == pytest.approx(np.log([expected.low, expected.high]), abs=0.02 * width)


def test_the_difference_of_two_rows_is_drawn_from_their_paired_differences(monkeypatch):
    monkeypatch.setattr(noise_module, "DRAWS", 100_000)
    rng = np.random.default_rng(2)
    shared, own = rng.normal(0, 1, 5), rng.normal(0, 0.01, (2, 5))
    one, other = shared + own  # what a round does to both is a hundred times their own noise
    noise = SharedNoise(range(5))
    draws = [x.mean() + noise.of_rounds(dict(enumerate(x))) for x in (one, other)]
    expected = ratio_interval(one - other)
    low, high = np.quantile(draws[0] - draws[1], [0.025, 0.975])
    width = np.log(expected.high / expected.low)
    assert [low, high] == pytest.approx(np.log([expected.low, expected.high]), abs=0.02 * width)


def test_documents_are_drawn_as_the_board_draws_them():
    rng = np.random.default_rng(3)
    differences, weights = rng.normal(0.1, 1, 40), rng.uniform(1, 5, 40)
    expected = quality_draws(np.zeros((1, 40)), differences[None], weights, trained=False)
    found = expected.estimate + SharedNoise(()).of_documents(differences, weights)
    assert found == pytest.approx(expected.draws)


def test_the_probability_is_that_of_the_t_test():
    """With equal counts speed alone decides, and one row is on the front unless the other is faster."""
    board = board_of(measured({"full": (1, 1), "like": (1, 1)}, rounds=4, noise=0.05, seed=1))
    rows = rows_of(pareto(board, ["train_speed", "trainable"]))
    by_label = {row.label: row for row in board.table.rows}
    logs = log_ratios(by_label["like"], by_label["full"], SPEED, {Shape(64, 2, "float32")})
    expected = stdtr(3, logs.mean() / (logs.std(ddof=1) / 2))
    assert 0.05 < expected < 0.95
    assert rows.loc["like", "probability"] == pytest.approx(expected, abs=0.02)
    assert rows["probability"].sum() == pytest.approx(1)


def test_the_probability_of_like_rows_is_calibrated(monkeypatch):
    """Of two rows with the same truth, the probability that one is better is uniform over all records that may come."""
    monkeypatch.setattr(noise_module, "DRAWS", 1000)
    rng = np.random.default_rng(4)
    found = []
    for seed in range(600):
        one, other = 0.1 * rng.normal(size=(2, 3)) + rng.normal(size=3)
        noise = SharedNoise(range(3), seed)
        draws = [x.mean() + noise.of_rounds(dict(enumerate(x))) for x in (one, other)]
        found.append(np.mean(draws[0] > draws[1]))
    # Three standard errors; the normal distribution in place of t(2) would have 0.33 and 0.15.
    assert np.mean([not 0.1 < p < 0.9 for p in found]) == pytest.approx(0.2, abs=0.05)
    assert np.mean([not 0.01 < p < 0.99 for p in found]) == pytest.approx(0.02, abs=0.02)


def test_fewer_rounds_than_three_have_no_probability():
    front = pareto(board_of(measured(FOUR, rounds=2)), ["train_speed", "train_memory"])
    assert front.rows["probability"].isna().all()
    assert rows_of(front)["on_front"].sum() == 3
    assert any("3 rounds" in note for note in front.notes)
    assert not front.rows["dominated_clearly"].any()
    assert rows_of(front).loc["full", "dominated_by"] == "both"


def test_counts_alone_need_one_round():
    records = [
        r.model_copy(update={"metrics": r.metrics | {"checkpoint.bytes": Summary(median=5e3 - m, unit="B")}})
        for r, m in zip(measured(FOUR, rounds=1), (1000, 100, 5000 - 1, 300, 50), strict=True)
    ]
    rows = rows_of(pareto(board_of(records), ["trainable", "checkpoint"]))
    assert set(rows["probability"]) == {0.0, 1.0}


def test_a_row_of_few_rounds_takes_the_probability_of_those_it_dominates():
    late = measured({"late": (9000, 1)}, rounds=1)
    front = pareto(board_of([*measured({"full": (1000, 1000), "small": (500, 0.5)}), *late]), ["train_speed", "train_memory"])
    rows = rows_of(front)
    assert rows["probability"].isna().to_dict() == {"late": True, "full": True, "small": False}
    assert [("`late`" in note, "`full`" in note) for note in front.notes] == [(True, False), (False, True)]


def test_leaking_rows_and_those_without_a_metric_are_named_and_never_on_it():
    records = [
        r.model_copy(update={"leaks": "sees later tokens"})
        if r.cell.stack == "fast"
        else r.model_copy(update={"metrics": {SPEED: r.metrics[SPEED]}})
        if r.cell.stack == "bad"
        else r
        for r in measured(FOUR)
    ]
    front = pareto(board_of(records), ["train_speed", "train_memory"])
    assert front.excluded == {"fast": "LEAKS THE FUTURE", "bad": "no train_memory on the cells that are compared"}
    assert set(front.rows["stack"]) == {"full", "small", "both"}


def test_rows_at_chance_are_never_on_it():
    scores = QualityScores(scores={"accuracy": 0.5}, chance={"accuracy": 0.5}, n=4)
    settings = SETTINGS | {"quality": {"metric": "accuracy"}}
    front = pareto(board_of(measured(FOUR, quality=scores), settings), ["train_speed", "accuracy"])
    assert set(front.excluded) == set(FOUR)
    assert front.rows.empty
    assert front.knee is None


def floored(stack):
    return QualityScores(scores={"bits_per_byte": 9.0 if stack == "fast" else 2.0}, n=4)


def test_the_quality_floor_is_for_fronts_that_do_not_look_at_quality():
    board = board_of(r.model_copy(update={"quality": floored(r.cell.stack)}) for r in measured(FOUR))
    assert pareto(board, ["train_speed", "train_memory"]).excluded == {"fast": "below quality floor"}
    front = pareto(board, ["train_speed", "bits_per_byte"])
    assert rows_of(front).query("on_front").index.tolist() == ["both", "fast"]
    assert front.better == ("higher", "lower")


def test_no_knee_of_two():
    front = pareto(board_of(measured({"full": (1, 9), "x": (9, 99)})), ["train_speed", "train_memory"])
    assert rows_of(front)["on_front"].all()
    assert front.knee is None
    assert not front.rows["knee"].any()


@pytest.fixture
def scored(tmp_path):
    """Three stacks with a score for each document: `fast` is worse by far more than noise, `same` by less."""
    rng, folder = np.random.default_rng(0), tmp_path / "machine" / "s"
    folder.mkdir(parents=True)
    for record in trials(rounds=4):
        shift = {"full": 0.0, "fast": 0.5, "same": 0.0}[record.cell.stack]
        scores = (np.linspace(2, 3, 40) + shift + rng.normal(0, 0.005, 40)).tolist()
        write(
            folder,
            record.model_copy(update={"quality": QualityScores(scores={"bits_per_byte": np.mean(scores)}, n=40)}),
            scores,
        )
    return build(tmp_path, SETTINGS)[0]


def test_quality_beside_speed(scored):
    assert default_metrics(scored) == (SPEED, "bits_per_byte")
    rows = rows_of(pareto(scored, default_metrics(scored)))
    assert rows.loc["fast", "probability"] == 1
    assert 0.05 < rows.loc["same", "probability"] < 0.95 or 0.05 < rows.loc["full", "probability"] < 0.95
    assert rows["bits_per_byte"].to_dict() == scored.rows.set_index("stack")["quality"].to_dict()
    assert pd.isna(scored.rows.set_index("stack").loc["fast", "rank"])  # below the floor, and still on this front


@pytest.mark.parametrize(("name", "key"), [("train_speed", "train_speed"), ("bits_per_byte", "quality")])
def test_a_rows_draws_have_the_interval_of_the_board(scored, name, key):
    rows = {row.label: row for row in scored.table.rows}
    found = objective(scored, name).place(rows["same"], rows["full"], SharedNoise(range(1, 5)))
    ends = np.quantile(found.draws, [0.025, 0.975])
    own = scored.rows.set_index("stack").loc["same"]
    shown = np.array([own[f"{key}_low"], own[f"{key}_high"]])
    expected = np.log(shown) if key == "train_speed" else -shown[::-1]
    assert ends == pytest.approx(expected, abs=0.06 * np.ptp(expected))


def test_scores_without_documents_have_no_probability():
    front = pareto(board_of(trials()), [SPEED, "bits_per_byte"])
    rows = rows_of(front)
    assert rows.loc[["fast", "same"], "probability"].isna().all()
    assert rows.loc["fast", "on_front"]


def test_no_default_without_quality():
    assert default_metrics(board_of(measured(FOUR, quality=None))) == ()


def test_rows_that_the_board_hides_still_dominate():
    records = [*measured(FOUR)]
    [board] = boards_of(records, "stack != 'both'")
    rows = rows_of(pareto(board, ["train_speed", "train_memory"]))
    assert "both" not in rows.index
    assert rows.loc["full", "dominated_by"] == "both"


def test_of_utilization_more_is_better():
    records = [r.model_copy(update={"metrics": r.metrics | {"train.mfu": Summary(median=0.5, unit="share")}}) for r in trials()]
    board = board_of(records)
    assert objective(board, "train.mfu").better == "higher"
    ranked = board_of([by_mfu(record) for record in trials()], SETTINGS | {"ranking": {"by": "train.mfu"}})
    assert ranked.rows["stack"].iloc[0] == "fast"


def by_mfu(record):
    return record.model_copy(update={"metrics": {"train.mfu": record.metrics[SPEED]}})


@pytest.mark.parametrize(
    ("front", "metrics"), [(["train_speed", "train_memory"], ("train_speed", "train_memory")), (None, (SPEED, "bits_per_byte"))]
)
def test_a_suite_says_what_its_front_is_over(front, metrics):
    [found] = fronts_of([board_of(measured(FOUR), SETTINGS | {"front": front})])
    assert found.metrics == metrics
