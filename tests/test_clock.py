"""The clock: one form for every stored moment."""

from datetime import UTC, datetime, timedelta, timezone

from hypothesis import given
from hypothesis import strategies as st

from staffa import clock

moments = st.datetimes(
    min_value=datetime(1900, 1, 1), max_value=datetime(9000, 1, 1), timezones=st.timezones()
).map(lambda moment: moment.astimezone(UTC))  # in the hour that the clock is set back, equality is odd


def test_now_is_aware_and_in_utc() -> None:
    assert clock.now().tzinfo is UTC


def test_a_stored_moment_has_one_fixed_form_with_six_digits() -> None:
    moment = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)

    assert clock.to_text(moment) == "2026-11-21 09:30:00.000000"


def test_a_moment_of_another_zone_is_stored_in_utc() -> None:
    moment = datetime(2026, 11, 21, 9, 30, tzinfo=timezone(timedelta(hours=2)))

    assert clock.to_text(moment) == "2026-11-21 07:30:00.000000"


def test_the_present_as_text_is_the_present() -> None:
    before = clock.now()

    text = clock.now_text()

    assert len(text) == 26
    assert before <= clock.from_text(text) <= clock.now()


@given(moments)
def test_every_moment_survives_being_stored(moment: datetime) -> None:
    assert clock.from_text(clock.to_text(moment)) == moment


@given(moments, moments)
def test_stored_moments_sort_as_time_does(one: datetime, other: datetime) -> None:
    assert (clock.to_text(one) < clock.to_text(other)) == (one < other)
