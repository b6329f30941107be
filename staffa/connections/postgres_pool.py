"""Connections to PostgreSQL for one event loop: opened when needed, used again, the freshest first.

A check-out that has one at hand costs nothing, where a general pool's reset query and tasks would cost a single
insert a third of its time. Nobody keeps a connection for longer than one verb.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from staffa.errors import DatabaseUnavailable

if TYPE_CHECKING:
    import asyncpg

__all__ = ["Pool"]

# Seconds that closing waits for a server which does not answer.
CLOSE_WITHIN = 2.0


class Pool:
    """At most `size` connections; `connect` opens one."""

    def __init__(
        self, size: int, timeout: float, connect: Callable[[], Awaitable["asyncpg.Connection"]], safe: str
    ) -> None:
        self.size = size
        self.timeout = timeout
        self._connect = connect
        self._safe = safe
        self._open: dict[asyncpg.Connection, int] = {}
        self._idle: list[asyncpg.Connection] = []
        self._opening = 0
        self._closed = False
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._leaving: set[asyncio.Task[Any]] = set()
        self._guard: AsyncGenerator[None, None] | None = None

    @property
    def backends(self) -> Collection[int]:
        """The server's process ids of those that are open."""
        return self._open.values()

    @property
    def open(self) -> int:
        """How many connections there are, with those that are being opened."""
        return len(self._open) + self._opening

    async def acquire(self) -> "asyncpg.Connection":
        """A connection, to be given back by `release` or `discard`."""
        if self._guard is None and not self._closed:
            await self._close_with_loop()
        while True:
            while self._idle:
                connection = self._idle.pop()
                if not connection.is_closed():
                    return connection
                self.discard(connection)
            if self.open < self.size:
                return await self._new()
            await self._turn()

    def release(self, connection: "asyncpg.Connection") -> None:
        """Give a sound connection back."""
        if connection.is_closed() or connection not in self._open or self._guard is None:
            self.discard(connection)
        else:
            self._idle.append(connection)
            self._wake()

    def discard(self, connection: "asyncpg.Connection") -> None:
        """Get rid of a connection that nobody may use again."""
        self._open.pop(connection, None)
        if not connection.is_closed():
            self._dismiss(connection)
        self._wake()

    def expire(self) -> None:
        """Use none of the present connections for another verb: their server is not what it was."""
        idle, self._idle = self._idle, []
        self._open.clear()
        for connection in idle:
            self.discard(connection)

    async def close(self) -> None:
        """Close what is open; what is in use now, or asked for later, is closed when it is given back."""
        self._closed = True
        guard, self._guard = self._guard, None
        if guard is not None:
            await guard.aclose()

    def terminate(self) -> None:
        """Cut what is open, in its event loop but without waiting."""
        idle, self._idle = self._idle, []
        self._open.clear()
        for connection in idle:
            connection.terminate()
        for leaving in self._leaving:
            leaving.cancel()
        self._wake()

    def _dismiss(self, connection: "asyncpg.Connection") -> None:
        """Close it behind our back: the driver may be cancelling its statement still, and would complain if it was cut."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # collected after its loop has ended
            with suppress(RuntimeError):
                connection.terminate()
            return
        if self._guard is None:  # nobody would wait for it
            connection.terminate()
            return
        leaving = loop.create_task(_closed(connection), name="staffa postgres goodbye")
        self._leaving.add(leaving)
        leaving.add_done_callback(self._leaving.discard)

    async def _new(self) -> "asyncpg.Connection":
        self._opening += 1
        opening = asyncio.create_task(_opened(self._connect), name="staffa postgres connect")
        opening.add_done_callback(self._has_opened)
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            # The driver complains when it is interrupted: whoever comes next has the connection.
            self._leaving.add(opening)
            opening.add_done_callback(self._is_left)
            raise

    def _has_opened(self, opening: "asyncio.Task[asyncpg.Connection]") -> None:
        self._opening -= 1
        if opening.cancelled() or opening.exception() is not None:
            self._wake()
        else:
            connection = opening.result()
            self._open[connection] = connection.get_server_pid()

    def _is_left(self, opening: "asyncio.Task[asyncpg.Connection]") -> None:
        self._leaving.discard(opening)
        if opening.cancelled() or opening.exception() is not None:
            return
        self.release(opening.result())

    async def _turn(self) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(self.timeout):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self._wake()  # the turn was ours, and goes to the next
            with suppress(ValueError):
                self._waiting.remove(turn)
            if isinstance(error, TimeoutError):
                raise DatabaseUnavailable(
                    f"{self._safe}: all {self.size} connections were busy for {self.timeout:g} s "
                    "(pool_size in the url says how many there are)"
                ) from error
            raise

    def _wake(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done() and not turn.get_loop().is_closed():
                turn.set_result(None)
                return

    async def _close_with_loop(self) -> None:
        # A loop that ends closes its asynchronous generators while it can still wait: that is when we must close, too.
        self._guard = self._kept()
        await anext(self._guard)

    async def _kept(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            self._guard = None  # it holds the event loop, and is no use after it
            idle, self._idle = self._idle, []
            self._open.clear()
            await asyncio.gather(*map(_closed, idle), return_exceptions=True)
            await self._all_left()

    async def _all_left(self) -> None:
        leaving = set(self._leaving)
        if leaving:
            _, slow = await asyncio.wait(leaving, timeout=CLOSE_WITHIN)
            for one in slow:
                one.cancel()
            await asyncio.gather(*leaving, return_exceptions=True)


async def _opened(connect: Callable[[], Awaitable["asyncpg.Connection"]]) -> "asyncpg.Connection":
    return await connect()


async def _closed(connection: Any) -> None:
    try:
        await connection.close(timeout=CLOSE_WITHIN)
    except Exception:  # it does not answer: then without its farewell
        connection.terminate()
    except BaseException:
        connection.terminate()
        raise
