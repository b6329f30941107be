"""At most one wake-up a queue in a few milliseconds, however many jobs are inserted, and none of them forgotten."""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Collection

from staffa import clock

__all__ = ["Limiter"]

log = logging.getLogger("staffa.notifiers")

# Queues whose last wake-up is remembered, before those that are past are forgotten.
REMEMBERED = 1_000

# Seconds that a message may take: an event loop that ends waits for its last one.
SENT_WITHIN = 1.0


class Limiter:
    """Says who is woken now; the others are woken when their window ends, by the next who asks or else by `send`.

    An instance can be used from several event loops, also at the same time. Each has a timer of its own, and the
    first one that rings sends all that is due: nobody waits for a loop that stands still or was closed.
    """

    def __init__(self, window: float, send: Callable[[Collection[str]], Awaitable[None]]) -> None:
        self.window = window
        self._send = send
        self._woken: dict[str, float] = {}
        self._due: set[str] = set()
        self._timers: dict[asyncio.AbstractEventLoop, asyncio.Task[None]] = {}
        self._lock = threading.Lock()

    def now(self, queues: Collection[str]) -> list[str]:
        """Those whose window is open: whoever asks wakes them, and says `later` for them if that fails."""
        moment = clock.monotonic()
        with self._lock:
            self._forget(moment)
            woken = [queue for queue in queues if self._is_open(queue, moment)]
            self._woken.update(dict.fromkeys(woken, moment))
            self._due.difference_update(woken)
        return woken

    def later(self, queues: Collection[str]) -> None:
        """Wake these when their window ends: at the latest two windows after this call."""
        if queues:
            with self._lock:
                self._due.update(queues)
            self._set_timer()

    async def flush(self) -> None:
        """Wake at once those who wait for it."""
        await self._wake(clock.monotonic() + self.window)

    async def stop(self) -> None:
        """End every timer; what was due is forgotten unless it was flushed."""
        with self._lock:
            self._due = set()
        timers, self._timers = self._timers, {}
        for loop, timer in timers.items():
            if loop is asyncio.get_running_loop():
                timer.cancel()
                await asyncio.gather(timer, return_exceptions=True)
            elif not loop.is_closed():
                loop.call_soon_threadsafe(timer.cancel)

    async def _wake(self, moment: float) -> None:
        with self._lock:
            due = {queue for queue in self._due if self._is_open(queue, moment)}
            self._due -= due
            self._woken.update(dict.fromkeys(due, clock.monotonic()))
        if due:
            await self._send(due)

    def _is_open(self, queue: str, moment: float) -> bool:
        return moment - self._woken.get(queue, -self.window) >= self.window

    def _forget(self, moment: float) -> None:
        if len(self._woken) > REMEMBERED:
            self._woken = {
                queue: woken for queue, woken in self._woken.items() if moment - woken < self.window
            }

    def _set_timer(self) -> None:
        loop = asyncio.get_running_loop()
        timer = self._timers.get(loop)
        if timer is None or timer.done():
            self._timers = {loop: timer for loop, timer in self._timers.items() if not loop.is_closed()}
            self._timers[loop] = asyncio.create_task(self._ring(loop), name="staffa notifier limiter")

    async def _ring(self, loop: asyncio.AbstractEventLoop) -> None:
        me = asyncio.current_task()
        try:
            while self._due:
                await asyncio.sleep(self.window)
                await self._safely(self._wake(clock.monotonic()))
        except asyncio.CancelledError:
            # Perhaps the event loop ends, as after `asyncio.run(app.enqueue(…))`: what it owes goes out first.
            await self._safely(self.flush())
            raise
        finally:
            if self._timers.get(loop) is me:  # also when it is collected, and no loop runs
                self._timers.pop(loop, None)

    async def _safely(self, sending: Awaitable[None]) -> None:
        try:
            async with asyncio.timeout(SENT_WITHIN):
                await sending
        except Exception as error:  # at a task's edge: the stager finds these jobs a little later
            log.warning("queues could not be woken: %s", str(error) or type(error).__name__)
