"""What a job may say about its own end, besides returning a value or raising an error.

Each of the three may be returned from `perform` or raised anywhere inside it; both mean the same.
Any other return value completes the job, any other exception fails the attempt.
"""

from datetime import timedelta

from staffa.options import check, seconds

__all__ = ["Cancel", "Discard", "Snooze"]


class Cancel(Exception):
    """End the job as `cancelled`: it is no longer wanted.

    Example:
        ```python
        from staffa import Cancel, job

        @job(name="docs.remind")
        async def remind(user_id: int) -> object:
            return Cancel("the user is gone")
        ```

    Args:
        reason: Why; it becomes the job's last error.
    """

    def __init__(self, reason: object = "cancelled") -> None:
        self.reason = reason
        super().__init__(reason)


class Discard(Exception):
    """End the job as `discarded`, whatever attempts are left: trying again cannot help.

    Args:
        reason: Why; it becomes the job's last error.
    """

    def __init__(self, reason: object = "discarded") -> None:
        self.reason = reason
        super().__init__(reason)


class Snooze(Exception):
    """Do the job again later, without using up an attempt.

    Example:
        ```python
        from datetime import timedelta
        from staffa import Snooze, job

        @job(name="docs.poll")
        async def poll(export_id: int) -> object:
            return Snooze(timedelta(minutes=5))
        ```

    Args:
        delay: Seconds or a `timedelta`, from now; zero or more.

    Raises:
        InvalidOption: The delay is negative or not a duration.
    """

    def __init__(self, delay: float | timedelta) -> None:
        parsed = seconds(delay)
        check(
            "delay", delay, ok=parsed is not None and parsed >= 0, want="seconds or a timedelta, zero or more"
        )
        self.seconds = parsed or 0.0
        super().__init__(delay)
