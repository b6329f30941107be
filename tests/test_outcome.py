"""Outcomes: what a job may say about its own end."""

import copy
import pickle
from datetime import timedelta
from typing import Any, cast

import pytest

from staffa import Cancel, Discard, Snooze
from staffa.errors import InvalidOption


@pytest.mark.parametrize("outcome", [Cancel("gone"), Discard("gone")])
def test_an_ending_has_a_reason(outcome: Cancel | Discard) -> None:
    assert outcome.reason == "gone"
    assert str(outcome) == "gone"


def test_a_reason_need_not_be_given() -> None:
    assert Cancel().reason == "cancelled"
    assert Discard().reason == "discarded"


@pytest.mark.parametrize(
    ("delay", "seconds"), [(0, 0.0), (60, 60.0), (0.5, 0.5), (timedelta(minutes=5), 300.0)]
)
def test_a_snooze_takes_seconds_or_a_timedelta(delay: float | timedelta, seconds: float) -> None:
    assert Snooze(delay).seconds == seconds


@pytest.mark.parametrize(
    "delay", [-1, timedelta(seconds=-1), "60", None, True, float("nan"), float("inf"), 10**400]
)
def test_a_snooze_refuses_what_is_no_duration_from_now_on__case_54(delay: object) -> None:
    with pytest.raises(
        InvalidOption, match="expected delay to be seconds or a timedelta, zero or more, got: "
    ):
        Snooze(cast("Any", delay))


@pytest.mark.parametrize("outcome", [Cancel("a"), Discard("b"), Snooze(timedelta(seconds=2))])
def test_outcomes_are_plain_exceptions_that_can_be_raised_copied_and_pickled(outcome: Exception) -> None:
    with pytest.raises(type(outcome)):
        raise outcome

    for twin in (copy.copy(outcome), pickle.loads(pickle.dumps(outcome))):
        assert type(twin) is type(outcome)
        assert vars(twin) == vars(outcome)
