"""SIGINT and SIGTERM for an instance that runs on its own.

The first one stops gracefully, the second puts running jobs back at once, a third ends the process. A wrapper may
pass on what the terminal sends to everybody anyway: signals that come within a moment of each other are one.
"""

import asyncio
import logging
import os
import signal
from collections.abc import Callable

from staffa import clock

__all__ = ["StopSignals"]

log = logging.getLogger("staffa")

NUMBERS = (signal.SIGINT, signal.SIGTERM)

# Seconds within which signals count as one.
MOMENT = 0.5


class StopSignals:
    """Listens while it is entered; `hurry` is called at the second signal."""

    def __init__(self, grace_period: float, hurry: Callable[[], None]) -> None:
        self.stopping = asyncio.Event()
        self._grace_period = grace_period
        self._hurry = hurry
        self._loop = asyncio.get_running_loop()
        self._count = 0
        self._last = -MOMENT

    def __enter__(self) -> "StopSignals":
        global _listening
        for number in NUMBERS:
            self._loop.add_signal_handler(number, self._hear, number)
        _listening = os.getpid()
        return self

    def __exit__(self, *_: object) -> None:
        global _listening
        _listening = 0
        for number in NUMBERS:
            self._loop.remove_signal_handler(number)

    def _hear(self, number: int) -> None:
        now = clock.monotonic()
        if now - self._last < MOMENT:
            return
        self._last = now
        self._count += 1
        if self._count == 1:
            name = signal.Signals(number).name
            log.info("%s: stopping; running jobs get %g s", name, self._grace_period)
            self.stopping.set()
        elif self._count == 2:
            log.warning("a second signal: running jobs are put back at once")
            self._hurry()
        else:
            os._exit(128 + number)


_listening = 0


def _after_fork_in_child() -> None:
    # A child that a job forks would hand its own signals to our event loop, through the pipe they share.
    global _listening
    if _listening:
        _listening = 0
        signal.set_wakeup_fd(-1)
        for number in NUMBERS:
            signal.signal(number, signal.SIG_DFL)


if hasattr(os, "register_at_fork"):  # where processes can fork
    os.register_at_fork(after_in_child=_after_fork_in_child)
