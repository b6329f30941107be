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
        self, size: int, wait: float, connect: Callable[[], Awaitable["asyncpg.Connection"]], safe: str
    ) -> None:
        self.size = size
        self._wait = wait
        self._connect = connect
        self._safe = safe
        self._open: dict[asyncpg.Connection, int] = {}
        self._idle: list[asyncpg.Connection] = []
        self._opening = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
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
        if self._guard is None:
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
        if connection.is_closed() or connection not in self._open:
            self.discard(connection)
        else:
            self._idle.append(connection)
            self._wake()

    def discard(self, connection: "asyncpg.Connection") -> None:
        """Get rid of a connection that nobody may use again."""
        self._open.pop(connection, None)
        if not connection.is_closed():
            connection.terminate()
        self._wake()

    def expire(self) -> None:
        """Use none of the present connections for another verb: their server is not what it was."""
        idle, self._idle = self._idle, []
        self._open.clear()
        for connection in idle:
            self.discard(connection)

    async def close(self) -> None:
        """Close what is open."""
        guard, self._guard = self._guard, None
        if guard is not None:
            await guard.aclose()

    def terminate(self) -> None:
        """Cut what is open, in its event loop but without waiting."""
        self.expire()

    async def _new(self) -> "asyncpg.Connection":
        self._opening += 1
        try:
            connection = await self._connect()
        except BaseException:
            self._opening -= 1
            self._wake()
            raise
        self._opening -= 1
        self._open[connection] = connection.get_server_pid()
        return connection

    async def _turn(self) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(self._wait):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self._wake()  # the turn was ours, and goes to the next
            with suppress(ValueError):
                self._waiting.remove(turn)
            if isinstance(error, TimeoutError):
                raise DatabaseUnavailable(
                    f"{self._safe}: all {self.size} connections were busy for {self._wait:g} s "
                    "(pool_size in the url says how many there are)"
                ) from error
            raise

    def _wake(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
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
            idle, self._idle = self._idle, []
            self._open.clear()
            await asyncio.gather(*(_closed(one) for one in idle), return_exceptions=True)


async def _closed(connection: Any) -> None:
    try:
        await connection.close(timeout=CLOSE_WITHIN)
    except BaseException:
        connection.terminate()
        raise
