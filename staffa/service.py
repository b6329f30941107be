"""One lifecycle for everything that runs: start, stop, and the loop that ticks until it is stopped."""

import asyncio
import logging
from typing import Any, Self

from staffa import backoff, telemetry
from staffa.errors import DatabaseError

__all__ = ["Loop", "Service"]

log = logging.getLogger("staffa.service")

# Seconds before a service that ended by itself begins anew.
REVIVE_AFTER = 0.05


class Service:
    """Something that is started and stopped, both as often as one likes, and runs in between.

    A subclass gives `run`, and perhaps `opened` and `closed` for what comes before and after.
    """

    def __init__(self, name: str | None = None) -> None:
        self.name = name or type(self).__name__.lower()
        self._task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._halting = False

    @property
    def running(self) -> bool:
        """Whether it was started and not stopped yet."""
        return self._task is not None

    async def start(self) -> None:
        """Start it in the running event loop; a second start does nothing."""
        if not self._runs_here():
            self._loop = asyncio.get_running_loop()
            await self.opened()
            self._halting = False
            self._run_in_task()

    def _runs_here(self) -> bool:
        if self._loop is not None and self._loop.is_closed():
            self._task = None  # what ran in a closed loop does not run
        return self._task is not None

    async def stop(self) -> None:
        """Stop it and wait until it has; a second stop does nothing."""
        task, self._task = self._task, None
        self._halting = True
        if task is not None:
            await self.halt(task)
            await self.closed()

    def _run_in_task(self) -> None:
        self._task = asyncio.create_task(self.run(), name=f"staffa {self.name}")
        self._task.add_done_callback(self._has_ended)

    def _has_ended(self, task: "asyncio.Task[None]") -> None:
        """A service that ends although nobody stopped it begins anew: without it, nothing would say that it is gone."""
        if not self._halting and self._loop is not None and not self._loop.is_closed():
            # Later: an event loop that ends cancels every task, and is gone by then.
            self._loop.call_later(REVIVE_AFTER, self._revive, task)

    def _revive(self, ended: "asyncio.Task[None]") -> None:
        if self._halting or self._task is not ended:
            return
        error = None if ended.cancelled() else ended.exception()
        log.critical("%s ended although nobody stopped it, and begins anew", self.name, exc_info=error)
        self._run_in_task()

    async def halt(self, task: "asyncio.Task[None]") -> None:
        """End the running task; cancelled unless a subclass knows a gentler way."""
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def opened(self) -> None:
        """What must be done before the task runs."""

    async def run(self) -> None:
        """The body."""

    async def closed(self) -> None:
        """What must be done when the task has ended."""

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()


class Loop(Service):
    """A service that calls `tick` every `interval` seconds, and sooner when it is woken.

    A wake that comes during a tick causes one more tick, never none. A tick that fails is logged, and the loop
    goes on after a growing pause. A stop lets the present tick finish.
    """

    # The pause after the first failure and the longest one, in seconds.
    pause, longest_pause = 0.25, 30.0
    # Seconds that a stop leaves to the tick that is under way.
    halt_within = 5.0

    def __init__(self, interval: float, name: str | None = None) -> None:
        super().__init__(name)
        self.interval = interval
        self._woken = asyncio.Event()
        self._halted = asyncio.Event()
        self._failures = 0

    async def tick(self) -> Any:
        """One round of work."""

    async def work(self) -> None:
        """A tick and what goes around it."""
        await self.tick()

    def wake(self) -> None:
        """Make it tick now; to be called in its own event loop."""
        self._woken.set()

    def wake_from_anywhere(self) -> None:
        """The same from any thread; does nothing when it does not run."""
        loop = self._loop
        if loop is not None:
            try:
                loop.call_soon_threadsafe(self._woken.set)
            except RuntimeError:
                log.debug("%s was woken after its event loop had been closed", self.name)

    async def start(self) -> None:
        """Start it; the first tick comes at once."""
        if not self._runs_here():
            self._woken = asyncio.Event()
            self._woken.set()
            self._halted = asyncio.Event()
            self._failures = 0
        await super().start()

    async def halt(self, task: "asyncio.Task[None]") -> None:
        """Let the present tick finish, then end; a tick that hangs is cancelled."""
        self._halted.set()
        self._woken.set()
        _, hanging = await asyncio.wait([task], timeout=self.halt_within)
        if hanging:
            log.warning("%s is cancelled: its tick did not end within %g s", self.name, self.halt_within)
            task.cancel()
            await asyncio.wait([task], timeout=self.halt_within)

    async def run(self) -> None:
        """Tick until stopped."""
        while not self._halted.is_set():
            await self._wait()
            self._woken.clear()
            if not self._halted.is_set():
                await self._tick_safely()

    async def _tick_safely(self) -> None:
        try:
            await self.work()
            self._failures = 0
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and _is_cancelled():
                raise
            delay = backoff.jitter(
                min(backoff.exponential(self._failures, mult=self.pause), self.longest_pause)
            )
            self._failures += 1
            log.warning(
                "%s failed and goes on in %.1f s: %s", self.name, delay, error, exc_info=_unexpected(error)
            )
            telemetry.emit("loop.failed", {"service": self.name, "error": error, "delay": delay})
            await self._pause(delay)

    async def _wait(self) -> None:
        if self._woken.is_set():
            return
        try:
            async with asyncio.timeout(backoff.jitter(self.interval)):
                await self._woken.wait()
        except TimeoutError:
            pass

    async def _pause(self, delay: float) -> None:
        # Not shortened by wakes (a broken database must not be hammered), only by a stop.
        try:
            async with asyncio.timeout(delay):
                await self._halted.wait()
        except TimeoutError:
            self._woken.set()


def _is_cancelled() -> bool:
    # A CancelledError may also come out of something that the tick waited for; that must not end the loop.
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _unexpected(error: BaseException) -> bool:
    """Whether only its traceback says what went wrong; what a database refuses is a sentence."""
    return not isinstance(error, DatabaseError)
