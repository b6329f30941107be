"""Backoff: how long to wait before trying again."""

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from staffa import backoff

BASES = {1: 17, 2: 19, 3: 23, 4: 31, 5: 47, 6: 79, 8: 271, 10: 1039, 15: 32_783, 19: 524_303, 20: 1_048_591}


@pytest.mark.parametrize(("attempt", "base"), BASES.items())
def test_the_default_is_15_seconds_and_a_power_of_two_and_up_to_a_tenth_more(attempt: int, base: int) -> None:
    delays = [backoff.attempt_delay(attempt, 20) for _ in range(100)]

    assert base <= min(delays)
    assert max(delays) <= base * 1.1


def test_jobs_that_failed_together_are_not_tried_again_together__case_41() -> None:
    delays = [backoff.attempt_delay(3, 20) for _ in range(100)]

    assert len(set(delays)) > 90
    assert max(delays) - min(delays) > 1


def test_each_of_twenty_attempts_waits_longer_than_the_one_before_whatever_the_jitter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for attempt, following in pairwise(range(1, 21)):
        monkeypatch.setattr(random, "random", lambda: 0.999_999)
        longest = backoff.attempt_delay(attempt, 20)
        monkeypatch.setattr(random, "random", lambda: 0.0)
        assert longest < backoff.attempt_delay(following, 20)


@given(st.integers(1, 2_000).flatmap(lambda most: st.tuples(st.integers(1, most), st.just(most))))
def test_no_attempt_waits_less_than_15_seconds_or_longer_than_the_twentieth(pair: tuple[int, int]) -> None:
    attempt, max_attempts = pair

    delay = backoff.attempt_delay(attempt, max_attempts)

    assert 15 < delay <= BASES[20] * 1.1


def test_the_exponent_is_spread_over_more_than_twenty_attempts() -> None:
    assert 15 + 2**1 <= backoff.attempt_delay(5, 100) <= (15 + 2**1) * 1.1
    assert 15 + 2**10 <= backoff.attempt_delay(50, 100) <= (15 + 2**10) * 1.1


def test_half_an_exponent_rounds_up() -> None:
    # 5 of 40 attempts is exponent 2.5; banker's rounding would make it 2.
    assert backoff.attempt_delay(5, 40) >= 15 + 2**3


def test_an_exponent_is_capped_and_never_negative() -> None:
    assert backoff.exponential(3) == 8
    assert backoff.exponential(1_000) == 2**10
    assert backoff.exponential(-5) == 1
    assert backoff.exponential(4, mult=0.5, max_pow=3, min_pad=1) == 5


@given(st.floats(0, 1e9), st.floats(0, 1))
def test_jitter_moves_a_value_by_a_part_of_it_in_the_wanted_direction(value: float, mult: float) -> None:
    slack = value * 1e-9

    assert value - slack <= backoff.jitter(value, "inc", mult) <= value * (1 + mult) + slack
    assert value * (1 - mult) - slack <= backoff.jitter(value, "dec", mult) <= value + slack
    assert value * (1 - mult) - slack <= backoff.jitter(value, "both", mult) <= value * (1 + mult) + slack


@given(st.floats())
def test_a_clamped_delay_can_be_added_to_a_moment_on_every_database__case_54(seconds: float) -> None:
    assert 0.0 <= backoff.clamp(seconds) <= backoff.MAX_DELAY


def test_a_delay_within_bounds_is_left_as_it_is() -> None:
    assert backoff.clamp(60.0) == 60.0
    assert backoff.clamp(float("nan")) == 0.0
    assert backoff.clamp(-1.0) == 0.0
    assert backoff.clamp(float("inf")) == backoff.MAX_DELAY
