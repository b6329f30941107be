"""Where plain functions run: threads, so that they never block the event loop.

The hand-over is batched in both directions. Threads take calls from one deque and wake each other one at a
time, so that a batch of short calls is worked off by few of them; what they have done is collected, and the
event loop is told once per batch.
"""

import asyncio
import contextvars
import logging
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeAlias

__all__ = ["ThreadRunner"]

log = logging.getLogger("staffa.runners")

Call: TypeAlias = Callable[[], Any]
Done: TypeAlias = Callable[[Any], None]


class ThreadRunner:
    """Threads of one event loop; there are never more than calls at the same time."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._loop: asyncio.AbstractEventLoop | None = None
        self._calls: deque[tuple[Call, Done]] = deque()
        self._results: deque[tuple[Done, Any]] = deque()
        self._permits = threading.Semaphore(0)
        self._lock = threading.Lock()
        self._threads = 0
        self._idle = 0
        self._waking = False
        self._told = False
        self._closed = False

    @property
    def threads(self) -> int:
        """How many threads there are now, idle ones included."""
        return self._threads

    def submit(self, call: Call, done: Done) -> None:
        """Run `call` in a thread, in a context of its own, then `done` with what it returned, in this event loop.

        Raises:
            RuntimeError: There is no thread, and none can be started. The call will not run.
        """
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        entry = (call, done)
        self._calls.append(entry)
        try:
            self._wake_one()
        except Exception:
            if self._taken_back(entry):
                raise

    def close(self) -> None:
        """Let idle threads end; busy ones end when their call does."""
        self._closed = True
        for _ in range(self._threads):
            self._permits.release()

    def _wake_one(self) -> None:
        # At most one thread is on its way at any time; it wakes the next one before it starts to work.
        with self._lock:
            if self._waking or self._closed:
                return
            self._waking = True
            if self._idle > 0:
                self._idle -= 1
                self._permits.release()
                return
            self._threads += 1
            number = self._threads
        try:
            threading.Thread(target=self._serve, name=f"{self.name} thread {number}", daemon=True).start()
        except Exception:
            with self._lock:
                self._threads -= 1
                self._waking = False
            raise

    def _taken_back(self, entry: tuple[Call, Done]) -> bool:
        """Remove a call for which no thread could be started, unless there are threads that will come to it."""
        # Before a thread goes idle it looks at the calls under this lock: one that is not idle comes to this call,
        # and one that went idle meanwhile has left none behind.
        with self._lock:
            if self._threads > self._idle or entry not in self._calls:
                return False
            self._calls.remove(entry)
            return True

    def _serve(self) -> None:
        while True:
            self._waking = False
            self._work()
            with self._lock:
                if self._calls and not self._closed:
                    continue
                if self._closed:
                    self._threads -= 1
                    return
                self._idle += 1
            self._permits.acquire()

    def _work(self) -> None:
        while True:
            try:
                call, done = self._calls.popleft()
            except IndexError:
                return
            if self._calls:
                with suppress(Exception):  # no further thread can be started: this one does them in turn
                    self._wake_one()
            self._finished(done, contextvars.Context().run(call))

    def _finished(self, done: Done, result: Any) -> None:
        self._results.append((done, result))
        with self._lock:
            if self._told or self._loop is None:
                return
            self._told = True
        try:
            self._loop.call_soon_threadsafe(self._collect)
        except RuntimeError:  # the event loop was closed: nobody waits any more
            self._results.clear()

    def _collect(self) -> None:
        self._told = False
        while True:
            try:
                done, result = self._results.popleft()
            except IndexError:
                return
            try:
                done(result)
            except Exception:
                log.exception("%s: what a call returned could not be handed over", self.name)
