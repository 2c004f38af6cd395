"""What several ranks' ends come to as one answer."""

from effbench.launch.answer import RankAnswer, joined

EXITED = {"reason": None, "exit": 0, "signal": None}
ABORTED = {"reason": None, "exit": -6, "signal": "SIGABRT"}
STOPPED = {"reason": "another rank failed", "exit": -9, "signal": "SIGKILL"}


def rank(status="ok", error=None, ended=EXITED, **metrics):
    outcome = {"status": status, "error": error, "metrics": {name: {"median": v, "unit": ""} for name, v in metrics.items()}}
    return RankAnswer(outcome, "train", ended)


def medians(answer):
    return {name: summary["median"] for name, summary in answer.outcome["metrics"].items()}


def test_metrics_are_merged_as_they_say():
    ranks = {0: rank(speed=5.0, peak=1.0, total=1.0), 1: rank(speed=5.0, peak=3.0, total=3.0)}
    answer = joined(ranks, {"peak": "max", "total": "sum"})
    assert medians(answer) == {"speed": 5.0, "peak": 3.0, "total": 4.0}
    assert answer.rank is None


def test_a_sum_over_some_of_the_ranks_is_left_out():
    answer = joined({0: rank(total=1.0, first=1.0), 1: rank()}, {"total": "sum"})
    assert medians(answer) == {"first": 1.0}


def test_the_rank_that_died_is_the_cause_and_not_the_one_that_lost_it():
    lost = rank("failed", "RuntimeError: [gloo] Connection closed by peer [127.0.0.1]:1234")
    answer = joined({0: lost, 1: RankAnswer(None, "train", ABORTED, "fatal words")}, {})
    assert (answer.rank, answer.outcome, answer.log) == (1, None, "fatal words")


def test_a_rank_that_raised_is_the_cause_and_not_the_one_we_ended():
    answer = joined({0: RankAnswer(None, "train", STOPPED), 1: rank("failed", "ValueError: its own words")}, {})
    assert (answer.rank, answer.outcome["error"]) == (1, "ValueError: its own words")


def test_one_rank_is_its_own_answer():
    assert joined({0: rank("failed", "ValueError: x")}, {}).rank is None
