"""How figures and moments are said."""

from datetime import UTC, datetime, timedelta

import pytest

from staffa.cli.render import ago, clean, counted, duration, figure, one_line, states


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 µs"),
        (85e-6, "85 µs"),
        (0.0012, "1.2 ms"),
        (0.34, "340 ms"),
        (0.9999, "1.0 s"),
        (3.44, "3.4 s"),
        (59.99, "1 min"),
        (125, "2 min 5 s"),
        (3_599.9, "1 h"),
        (3 * 3600 + 240, "3 h 4 min"),
        (2 * 86400 + 3 * 3600, "2 d 3 h"),
    ],
)
def test_durations_are_said_as_people_say_them(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_moments_are_said_by_their_distance() -> None:
    now = datetime.now(UTC)

    assert ago(now - timedelta(minutes=3, seconds=0.2)) == "3 min ago"
    assert ago(now + timedelta(hours=2, seconds=30)) == "in 2 h"
    assert ago(None) == ""


def test_numbers_are_grouped_and_nouns_counted() -> None:
    assert figure(1234567.8) == "1,234,568"
    assert figure(0.4211) == "0.42"
    assert counted(1, "job") == "1 job"
    assert counted(5_123, "job") == "5,123 jobs"
    assert states({"completed": 5_101, "executing": 0, "discarded": 22}) == "5,101 completed, 22 discarded"


def test_text_is_made_harmless_and_short() -> None:
    assert clean("a\x1b[31mb\x07\n\tc") == "a\N{REPLACEMENT CHARACTER}[31mb\N{REPLACEMENT CHARACTER}\n\tc"
    assert one_line("a\n  b" + "c" * 100, 10) == "a bcccccc…"
