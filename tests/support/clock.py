"""A clock for engines that stands still until a test moves it."""

from datetime import UTC, datetime, timedelta

from staffa import clock

__all__ = ["Clock"]


class Clock:
    """Takes the place of `engine.now`: `store.engine.now = Clock()`."""

    def __init__(self) -> None:
        self.moment = datetime(2026, 11, 21, 9, 30, 0, 123_456, tzinfo=UTC)

    def __call__(self) -> str:
        return clock.to_text(self.moment)

    def set(self, moment: datetime) -> None:
        """Say what time it is."""
        self.moment = moment

    def advance(self, seconds: float = 0.0, *, microseconds: int = 0) -> datetime:
        """Move on, or back; returns the new moment."""
        self.moment += timedelta(seconds=seconds, microseconds=microseconds)
        return self.moment

    def after(self, seconds: float) -> str:
        """The moment so many seconds from now, as it is stored."""
        return clock.to_text(self.moment + timedelta(seconds=seconds))
