"""The only place that asks what time it is.

Moments are aware datetimes in UTC; in a database they are text (or a column) of one fixed form,
`2026-11-21 09:30:00.000000`, always with six digits, so that text sorts as time does.
"""

import time
from datetime import UTC, datetime

__all__ = ["from_text", "monotonic", "now", "now_text", "to_text"]

monotonic = time.monotonic


def now() -> datetime:
    """The present moment."""
    return datetime.now(UTC)


def now_text() -> str:
    """The present moment, as it is stored."""
    return to_text(datetime.now(UTC))


def to_text(moment: datetime) -> str:
    """An aware datetime, as it is stored."""
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")


def from_text(text: str) -> datetime:
    """A stored moment, as an aware datetime."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)
