"""A budget that is kept, with a clock that only the test moves."""

import pytest

from effbench.launch.budget import Budget, parse_duration
from effbench.plugin import InputError


class Clock:
    """Moves only when told."""

    now = 100.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("10m", 600), ("2h", 7200), ("1h30m", 5400), (" 1H2m3s ", 3723)])
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["10", "m", "", "0s", "10 minutes", "1.5h", "-3m", "3m2h"])
def test_other_durations_say_what_is_allowed(text):
    with pytest.raises(InputError, match="for instance 90s, 10m or 1h30m"):
        parse_duration(text)


def test_a_trial_that_would_end_too_late_is_not_begun():
    clock = Clock()
    budget = Budget(60.0, clock)
    budget.learn({"a": 20.0, "b": 3.0})
    clock.now += 39
    assert budget.allows("a", warm=True)
    clock.now += 2
    assert not budget.allows("a", warm=True)
    assert budget.allows("b", warm=True)
    assert not budget.allows("never seen", warm=True)
    assert budget.left() == 19


def test_a_worker_that_must_start_first_takes_its_time():
    budget = Budget(20.0, Clock())
    budget.learn({"a": 10.0})
    assert budget.allows("a", warm=True)
    assert not budget.allows("a", warm=False)


def test_the_longest_trial_of_a_cell_is_what_it_may_take():
    budget = Budget(20.0, Clock())
    for seconds in (5.0, 30.0, 4.0):
        budget.learn({"a": seconds})
    assert not budget.allows("a", warm=True)


def test_without_a_limit_all_is_allowed():
    budget = Budget()
    budget.learn({"a": 1e9})
    assert budget.allows("a", warm=False)
    assert budget.left() is None
