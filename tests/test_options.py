"""Options: one way to check them, and to say what is wrong."""

from dataclasses import dataclass
from datetime import timedelta

import pytest

from staffa.errors import InvalidOption
from staffa.options import build, check, did_you_mean, seconds, shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    interval: float = 1.0
    limit: int = 10


class Unspeakable:
    def __repr__(self) -> str:
        raise RuntimeError("no words")


def test_a_check_that_holds_says_nothing() -> None:
    check("limit", 1, ok=True, want="a positive integer")


def test_a_check_that_fails_says_what_was_expected_and_what_came() -> None:
    with pytest.raises(InvalidOption) as caught:
        check("limit", 0, ok=False, want="a positive integer")

    assert str(caught.value) == "expected limit to be a positive integer, got: 0"
    assert caught.value.option == "limit"


def test_an_invalid_option_is_a_value_error_too() -> None:
    assert issubclass(InvalidOption, ValueError)


def test_options_are_built_from_names_and_values() -> None:
    assert build(Sample, {"limit": 3}, of="sample") == Sample(limit=3)


def test_an_unknown_option_is_refused_with_a_suggestion() -> None:
    with pytest.raises(
        InvalidOption, match=r"sample: unknown option 'intervall', did you mean 'interval'\?"
    ) as caught:
        build(Sample, {"intervall": 3}, of="sample")

    assert caught.value.option == "intervall"


def test_a_name_that_resembles_nothing_gets_the_list_of_what_there_is() -> None:
    assert did_you_mean("zzz", ["queue", "limit"]) == "; there are: limit, queue"


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, 0.0), (5, 5.0), (-2, -2.0), (0.5, 0.5), (timedelta(minutes=1, milliseconds=500), 60.5)],
)
def test_a_duration_is_seconds_or_a_timedelta(value: object, expected: float) -> None:
    assert seconds(value) == expected


@pytest.mark.parametrize(
    "value", [True, "5", None, float("nan"), float("inf"), -float("inf"), [1], 10**400, -(10**400)]
)
def test_anything_else_is_no_duration(value: object) -> None:
    assert seconds(value) is None


def test_long_values_are_shown_cut() -> None:
    text = shown("x" * 1000)

    assert len(text) == 80
    assert text.endswith("…")


def test_a_value_whose_repr_fails_is_shown_all_the_same() -> None:
    assert shown(Unspeakable()) == "<Unspeakable without a repr>"
