"""What the simulation says of the procedure is worth something only if it judges as the board does, and as the run goes on."""

import math

import many_boards
import numpy as np
import pytest
import simulate
from sessions import called

from effbench.board.clarity import LOOKS
from effbench.board.stats import holm_intervals, ratio_interval
from effbench.board.verdict import verdict

WORDS = {"FASTER": many_boards.FASTER, "SLOWER": many_boards.SLOWER, "SAME": many_boards.SAME, "UNCLEAR": many_boards.UNCLEAR}
BOUND = math.log1p(0.03)


def by_the_board(samples):
    return [WORDS[verdict(adjusted, 0.03)] for _, adjusted in holm_intervals(samples, BOUND)]


@pytest.fixture(scope="module")
def logs():
    """Boards with every kind of verdict on them."""
    rng, shape = np.random.default_rng(1), (150, 8, 1)
    noise = rng.choice([0.005, 0.05], shape) * rng.normal(size=(150, 8, 20))
    return rng.choice([-0.1, 0.0, BOUND, 0.1], shape) + noise


@pytest.mark.parametrize("rounds", [2, 3, 5, 12])
def test_many_boards_are_judged_as_each_by_itself(logs, rounds):
    found = many_boards.verdicts(logs[..., :rounds], BOUND)
    assert [list(board) for board in found] == [by_the_board(list(board[:, :rounds])) for board in logs]
    assert set(np.unique(found)) >= ({many_boards.UNCLEAR} if rounds == 2 else {many_boards.FASTER, many_boards.SLOWER})


def test_stacks_of_different_rounds_are_judged_together(logs):
    seen = np.random.default_rng(2).random(logs.shape) < 0.3
    samples = [[row[mask] for row, mask in zip(*pair, strict=True)] for pair in zip(logs, seen, strict=True)]
    assert [list(board) for board in many_boards.verdicts(logs, BOUND, seen)] == [by_the_board(board) for board in samples]


def test_until_clear_goes_on_with_what_is_unclear_and_nothing_else(logs):
    boards, seen = many_boards.until_clear(logs, BOUND)
    for before, last, look in zip(boards, LOOKS, LOOKS[1:], strict=False):
        assert (seen[..., last:look] == (before == many_boards.UNCLEAR)[..., None]).all()
    assert {LOOKS[0], LOOKS[-1]} <= set(seen.sum(axis=-1).ravel())


def test_coverage_is_that_of_the_interval_on_the_board():
    share = simulate.covered("normal", np.random.default_rng(3), 400, 5)
    rows = simulate.run_of(simulate.NOISES["normal"], np.random.default_rng(3), 400, 5, 5)[:, 0]
    assert share == np.mean([i.low <= 1 <= i.high for i in map(ratio_interval, rows)])


def run_at(truth, noise, boards):
    unit = simulate.run_of(simulate.NOISES[noise], np.random.default_rng(4), boards, simulate.STACKS, LOOKS[-1])
    return simulate.TRUTHS[truth][:, None] + 0.12 * unit


def ever_wrong(boards, truth):
    return np.any([simulate.wrong(board, simulate.TRUTHS[truth]) for board in boards], axis=0)


@pytest.mark.parametrize("truth", simulate.TRUTHS)
@pytest.mark.parametrize("noise", simulate.NOISES)
def test_the_whole_procedure_rarely_errs(noise, truth):
    called = ever_wrong(many_boards.until_clear(run_at(truth, noise, 300), BOUND)[0], truth)
    assert called.mean() <= 0.01
    assert called.any(axis=1).mean() <= 0.08  # 5 %, and more than two standard errors of 300 boards


def test_looking_again_and_again_at_the_plain_level_would_err_too_often(monkeypatch):
    monkeypatch.setattr(many_boards, "VERDICT_LEVEL", 0.05)
    called = ever_wrong(many_boards.until_clear(run_at("at the margin", "normal", 600), BOUND)[0], "at the margin")
    assert called.any(axis=1).mean() > 0.05


def test_what_sessions_share_fails_equal_code_unless_it_is_taken_out():
    def share(shape, relative):
        return called(40, np.random.default_rng(0), 0.1, 0.0, shape=shape, relative=relative)

    assert share((1, 3), False) > 0.2
    assert share((1, 3), True) == share((3, 3), False) == 0
