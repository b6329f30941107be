"""PostgreSQL: our own connections, a thread's own, and a user's asyncpg connection."""

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

from staffa import backoff
from staffa.connections.base import URL, Adopted
from staffa.connections.postgres_driver import (
    BEGIN,
    Settings,
    connect,
    driver,
    execute,
    is_lost,
    is_read_only,
    is_unprepared,
    settings_of,
    translated,
    translated_of_user,
)
from staffa.connections.postgres_pool import Pool
from staffa.errors import DatabaseError, UnsupportedConnection
from staffa.steps import Item, Rows, Statement, Steps, drive_async

if TYPE_CHECKING:
    import asyncpg

__all__ = ["AdoptedAsyncpg", "DedicatedPostgres", "PostgresConnections"]

T = TypeVar("T")

# Seconds that a heartbeat waits for an answer: in a silent connection it must not outlast the lease.
HASTE = 5.0

# Seconds before a statement is run again that was broken off for another's sake.
PAUSES = (0.01, 0.02, 0.05, 0.1)

# After a forked child has dropped them: kept, for collecting them would say goodbye on the parent's sockets.
_of_the_parent: list[object] = []


class PostgresConnections:
    """An instance's connections: a small pool for each event loop that uses them."""

    def __init__(self, url: URL) -> None:
        driver()
        self.url = url
        self.settings = settings_of(url)
        self.topic = self.settings.topic
        self._pools: WeakKeyDictionary[asyncio.AbstractEventLoop, Pool] = WeakKeyDictionary()
        self._pid = os.getpid()
        self._prepares: bool | None = None

    async def run(self, steps: Steps[T]) -> T:
        """Run steps and commit them; a statement alone commits by itself."""
        return await self.run_on(self._pool(), steps)

    async def run_on(self, pool: Pool, steps: Steps[T]) -> T:
        """Run steps on a connection of that pool."""
        session = _Session(self, pool, await pool.acquire())
        try:
            return await drive_async(steps, session.run)
        finally:
            session.end()

    async def read(self, steps: Steps[T]) -> T:
        """The same: readers wait for nobody here."""
        return await self.run(steps)

    async def dedicated(self) -> "DedicatedPostgres":
        """A connection of the calling thread's own, in its event loop."""
        return DedicatedPostgres(self)

    async def connect(self) -> "asyncpg.Connection":
        """Open a connection outside of every pool."""
        if self._prepares is None:
            return await self._first()
        return await connect(self.settings, prepares=self._prepares)

    def is_served_by(self, pid: int) -> bool:
        """Whether a backend of the server with this process id runs our steps."""
        return any(pid in pool.backends for _, pool in _each(self._pools))

    def watch(self, callback: Callable[[], None]) -> None:
        """Nothing can be seen from here: other connections send messages instead."""

    def adopt(self, connection: object) -> Adopted:
        """A connection of the user's own."""
        asyncpg = driver()
        if isinstance(connection, (asyncpg.Connection, asyncpg.pool.PoolConnectionProxy)):
            return AdoptedAsyncpg(connection, self.settings)
        kind = f"{type(connection).__module__}.{type(connection).__qualname__}"
        raise UnsupportedConnection(f"expected conn to be an asyncpg connection, got: {kind}")

    async def close(self) -> None:
        """Close the connections of this event loop, and give up the others'."""
        mine = self._pools.pop(asyncio.get_running_loop(), None)
        if mine is not None and self._pid == os.getpid():
            await mine.close()
        self.release()

    def release(self) -> None:
        """Give all connections up, each in its own event loop."""
        pools, self._pools = self._pools, WeakKeyDictionary()
        if self._pid != os.getpid():
            _of_the_parent.extend(pools.items())
            return
        for loop, pool in _each(pools):
            with suppress(RuntimeError):  # a loop that is closed has closed them
                loop.call_soon_threadsafe(pool.terminate)

    def prepares_no_more(self) -> None:
        """A pooler hands us another server connection with each transaction: nothing prepared may be relied on."""
        self._prepares = False
        here = asyncio.get_running_loop()
        for loop, pool in _each(self._pools):
            if loop is here:
                pool.expire()
                continue
            with suppress(RuntimeError):  # a loop that is closed uses none
                loop.call_soon_threadsafe(pool.expire)

    def _pool(self) -> Pool:
        if self._pid != os.getpid():
            self.release()
            self._pid = os.getpid()
        loop = asyncio.get_running_loop()
        pool = self._pools.get(loop)
        if pool is None:
            self._forget_closed_loops()
            pool = self._pools[loop] = self.new_pool(self.settings.pool_size)
        return pool

    def _forget_closed_loops(self) -> None:
        # A pool that did not end with its loop, as the loop was closed by hand, keeps it from being collected.
        for loop, _ in _each(self._pools):
            if loop.is_closed():
                self._pools.pop(loop, None)

    def new_pool(self, size: int, haste: float | None = None) -> Pool:
        """A pool for the running event loop; in haste, it waits no longer than so many seconds for any answer."""
        timeout = (
            self.settings.command_timeout if haste is None else min(haste, self.settings.command_timeout)
        )
        return Pool(size, timeout, self.connect, self.settings.safe)

    async def _first(self) -> "asyncpg.Connection":
        """Open the first connection, and find out whether a pooler stands between.

        A pooler cannot tell the process that will serve us, and makes a number up: then it is not the server's.
        """
        connection = await connect(self.settings, prepares=False)
        try:
            served_by = await connection.fetchval(
                "SELECT pg_backend_pid()", timeout=self.settings.command_timeout
            )
        except BaseException as error:
            connection.terminate()
            if isinstance(error, Exception):
                raise translated(error, self.settings.safe) from error
            raise
        self._prepares = served_by == connection.get_server_pid()
        if not self._prepares:
            return connection
        await connection.close(timeout=self.settings.connect_timeout)
        return await connect(self.settings)


def _each(
    pools: WeakKeyDictionary[asyncio.AbstractEventLoop, Pool],
) -> list[tuple[asyncio.AbstractEventLoop, Pool]]:
    """The pools there are, while other threads add theirs."""
    loops = [loop for ref in pools.keyrefs() if (loop := ref()) is not None]
    return [(loop, pool) for loop in loops if (pool := pools.get(loop)) is not None]


class DedicatedPostgres:
    """A connection that one thread has for itself."""

    def __init__(self, connections: PostgresConnections) -> None:
        self._connections = connections
        self._pool = connections.new_pool(1, HASTE)

    async def run(self, steps: Steps[T]) -> T:
        """Run steps and commit them."""
        return await self._connections.run_on(self._pool, steps)

    async def close(self) -> None:
        """Close it."""
        await self._pool.close()


class AdoptedAsyncpg:
    """A user's asyncpg connection: steps run in the user's transaction, or commit by themselves when there is none.

    Inside a transaction everything stands in a savepoint: an error of ours must leave the transaction usable.
    """

    def __init__(self, connection: Any, settings: Settings) -> None:
        self._connection = connection
        self._settings = settings
        self._depth = 0
        self._inside = False

    async def run(self, steps: Steps[T]) -> T:
        """Run steps in the user's transaction."""
        with _Translated(self._settings):
            self._inside = self._connection.is_in_transaction()
        if not self._inside:
            return await drive_async(steps, self._run)
        await self._run("savepoint")
        try:
            result = await drive_async(steps, self._run)
        except BaseException:
            await self._run("rollback_to")
            raise
        await self._run("release")
        return result

    async def _run(self, item: Item) -> Rows:
        match item:
            case Statement():
                with _Translated(self._settings):
                    return await execute(self._connection, item, self._settings.command_timeout)
            case "savepoint":
                await self._begin()
                self._depth += 1
            case "release":
                self._depth -= 1
                await self._command(f"RELEASE staffa_{self._depth}" if self._level() else "COMMIT")
            case "rollback_to":
                self._depth -= 1
                if not self._connection.is_closed() and self._connection.is_in_transaction():
                    await self._undo()
        return []

    def _level(self) -> int:
        return self._depth + self._inside

    async def _begin(self) -> None:
        if self._level():
            return await self._command(f"SAVEPOINT staffa_{self._depth}")
        try:
            await self._command(BEGIN)
        except asyncio.CancelledError:  # it may have begun all the same, and nobody else would end it
            await self._command("ROLLBACK")
            raise
        return None

    async def _undo(self) -> None:
        if self._level():
            await self._command(f"ROLLBACK TO staffa_{self._depth}")
            await self._command(f"RELEASE staffa_{self._depth}")
        else:
            await self._command("ROLLBACK")

    async def _command(self, text: str) -> None:
        with _Translated(self._settings):
            await self._connection.execute(text, timeout=self._settings.command_timeout)


class _Session:
    """One verb on one of our connections."""

    def __init__(
        self, connections: PostgresConnections, pool: Pool, connection: "asyncpg.Connection"
    ) -> None:
        self._connections = connections
        self._settings = connections.settings
        self._pool = pool
        self._connection = connection
        self._depth = 0
        self._sound = True

    async def run(self, item: Item) -> Rows:
        """Run one item of the steps."""
        if isinstance(item, Statement):
            return await self._statement(item)
        match item:
            case "savepoint":
                await self._begin()
            case "release":
                self._depth -= 1
                await self._command(f"RELEASE staffa_{self._depth}" if self._depth else "COMMIT")
            case "rollback_to":
                self._depth -= 1
                if self._sound:
                    await self._command(f"ROLLBACK TO staffa_{self._depth}" if self._depth else "ROLLBACK")
        return []

    def end(self) -> None:
        """Give the connection back, or get rid of it when nobody knows what state it is in."""
        if self._sound and self._depth == 0:
            self._pool.release(self._connection)
        else:
            self._pool.discard(self._connection)

    async def _begin(self) -> None:
        if not self._sound and self._depth == 0:
            await self._replace()
        await self._command(f"SAVEPOINT staffa_{self._depth}" if self._depth else BEGIN)
        self._depth += 1

    async def _command(self, text: str) -> None:
        with _Judged(self):
            await self._connection.execute(text, timeout=self._pool.timeout)

    async def _statement(self, statement: Statement) -> Rows:
        for pause in (*PAUSES, None):
            try:
                with _Judged(self):
                    return await execute(self._connection, statement, self._pool.timeout)
            except DatabaseError as error:
                if self._depth or pause is None or not error.repeatable:
                    raise  # inside a transaction, all of it is run again
            if self._sound:
                await asyncio.sleep(backoff.jitter(pause))
            else:
                await self._replace()
        raise AssertionError("unreachable")

    async def _replace(self) -> None:
        self._pool.discard(self._connection)
        self._connection = await self._pool.acquire()
        self._sound = True

    def judge(self, error: Exception) -> DatabaseError:
        """What an error says about the connection, and the error as ours."""
        ours = translated(error, self._settings.safe)
        if is_unprepared(error):
            self._connections.prepares_no_more()
            self._sound = False
            ours.repeatable = True
        elif is_read_only(error):
            self._pool.expire()
            self._sound = False
        elif is_lost(error):
            self._sound = False
        return ours

    def spoil(self) -> None:
        """The connection was left in the middle of something."""
        self._sound = False


class _Translated:
    """Around each call of the driver on a user's connection: its errors become ours."""

    __slots__ = ("_settings",)

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception):
            raise translated_of_user(error, self._settings.safe) from error


class _Judged:
    """Around each call of the driver: its errors become ours, and the connection is judged by them."""

    __slots__ = ("_session",)

    def __init__(self, session: _Session) -> None:
        self._session = session

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            return
        if isinstance(error, Exception):
            raise self._session.judge(error) from error
        self._session.spoil()
