"""At most one wake-up a queue in ten milliseconds, however many jobs are inserted, and none of them forgotten."""

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
    """Says who is woken now; the others are woken by `send`, once, when their window ends.

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
        """Those whose window is open: whoever asks wakes them."""
        moment = clock.monotonic()
        with self._lock:
            self._forget(moment)
            woken = [queue for queue in queues if self._may_be_woken(queue, moment)]
            self._woken.update(dict.fromkeys(woken, moment))
        return woken

    def later(self, queues: Collection[str]) -> None:
        """Wake these when the window ends: at the latest so long after this call."""
        if queues:
            with self._lock:
                self._due.update(queues)
            self._set_timer()

    async def flush(self) -> None:
        """Wake at once those who wait for it."""
        with self._lock:
            due, self._due = self._due, set[str]()
            self._woken.update(dict.fromkeys(due, clock.monotonic()))
        if due:
            await self._send(due)

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

    def _may_be_woken(self, queue: str, moment: float) -> bool:
        return queue not in self._due and moment - self._woken.get(queue, -self.window) >= self.window

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
            self._timers[loop] = asyncio.create_task(self._ring(), name="staffa notifier limiter")

    async def _ring(self) -> None:
        try:
            await asyncio.sleep(self.window)
        except asyncio.CancelledError:
            # Perhaps the event loop ends, as after `asyncio.run(app.enqueue(…))`: what it owes goes out first.
            await self._flush_safely()
            raise
        finally:
            if asyncio.current_task() is self._timers.get(here := asyncio.get_running_loop()):
                del self._timers[here]
        await self._flush_safely()

    async def _flush_safely(self) -> None:
        try:
            async with asyncio.timeout(SENT_WITHIN):
                await self.flush()
        except Exception as error:  # at a task's edge: the stager finds these jobs a little later
            log.warning("queues could not be woken: %s", error or type(error).__name__)
