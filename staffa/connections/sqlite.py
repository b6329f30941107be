"""SQLite: our own way to a file, a thread's own connection, and a user's connection."""

import asyncio
import os
import sqlite3
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from staffa.connections.base import URL
from staffa.connections.sqlite_driver import (
    BEGIN,
    Settings,
    commits_by_itself,
    execute,
    file_of,
    roll_back,
    settings_of,
)
from staffa.connections.sqlite_handle import Handle, guard
from staffa.connections.sqlite_writer import Reply, Request, WriterThread, acquire, release
from staffa.errors import UnsupportedConnection
from staffa.steps import Item, Rows, Statement, Steps, drive

__all__ = ["AdoptedSQLite", "DedicatedSQLite", "SQLiteConnections"]

T = TypeVar("T")


class SQLiteConnections:
    """An instance's way to its file."""

    def __init__(self, url: URL) -> None:
        self.url = url
        self._settings = settings_of(url)
        self.topic = self._settings.key
        self._file: WriterThread | None = None

    async def run(self, steps: Steps[T]) -> T:
        """Run steps in the writer thread: one hop there, one back."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()
        self._opened().submit(Request(steps, Reply(loop, answer)))
        return await answer

    async def read(self, steps: Steps[T]) -> T:
        """Run steps that only read, in the reader thread."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()
        self._opened().submit_read(Request(steps, Reply(loop, answer)))
        return await answer

    async def dedicated(self) -> "DedicatedSQLite":
        """A connection for the calling thread alone, driven where it is called."""
        return DedicatedSQLite(self._settings)

    def watch(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call back, in the writer thread, when another connection has committed."""
        file = self._opened()
        file.watchers.append(callback)
        file.nudge()

        def unwatch() -> None:
            if callback in file.watchers:
                file.watchers.remove(callback)

        return unwatch

    def adopt(self, connection: object) -> "AdoptedSQLite":
        """A connection of the user's own, to this file."""
        if not isinstance(connection, sqlite3.Connection):
            kind = f"{type(connection).__module__}.{type(connection).__qualname__}"
            raise UnsupportedConnection(f"expected conn to be a sqlite3.Connection, got: {kind}")
        file = file_of(connection)
        if file != self._settings.path and not _is_same(file, self._settings.path):
            raise UnsupportedConnection(
                f"expected conn to be a connection to {self._settings.path}, where this instance has its jobs, got: "
                f"one to {file or 'a database in memory'}; a job in another database would never be performed"
            )
        return AdoptedSQLite(connection)

    async def close(self) -> None:
        """Give the file up; the last instance that does closes it."""
        self.release()

    def release(self) -> None:
        """The same from anywhere; does not wait for another process's lock."""
        with guard():
            file, self._file = self._file, None
        if file is not None and file.pid == os.getpid():
            release(file)

    def _opened(self) -> "WriterThread":
        file = self._file
        if file is None or file.pid != os.getpid():
            with guard():  # two threads may use it for the first time at once
                file = self._file
                if file is None or file.pid != os.getpid():
                    file = self._file = acquire(self._settings)
        return file


def _is_same(file: str, other: str) -> bool:
    try:
        return os.path.samefile(file, other)
    except OSError:
        return False


class DedicatedSQLite:
    """A connection of one thread's own. A statement commits by itself, unless the verb asks for atomicity."""

    def __init__(self, settings: Settings) -> None:
        self._handle = Handle(settings, look_every=0)
        self._depth = 0
        with self._handle:
            self._handle.open()

    async def run(self, steps: Steps[T]) -> T:
        """Run steps here and now."""
        with self._handle:
            connection = self._handle.open()
            self._depth = 0
            try:
                return drive(steps, partial(self._run, connection))
            except BaseException:
                self._roll_back(connection)
                raise

    async def close(self) -> None:
        """Close it."""
        with self._handle:
            self._handle.drop()

    def _roll_back(self, connection: sqlite3.Connection) -> None:
        try:
            roll_back(connection)
        except sqlite3.Error:  # the error of the steps says more; closing undoes as well
            self._handle.drop()

    def _run(self, connection: sqlite3.Connection, item: Item) -> Rows:
        match item:
            case "savepoint":
                execute(connection, Statement(f"SAVEPOINT staffa_{self._depth}") if self._depth else BEGIN)
                self._depth += 1
            case "release":
                self._depth -= 1
                execute(connection, Statement(f"RELEASE staffa_{self._depth}" if self._depth else "COMMIT"))
            case "rollback_to":
                self._depth -= 1
                if connection.in_transaction:
                    how = f"ROLLBACK TO staffa_{self._depth}" if self._depth else "ROLLBACK"
                    execute(connection, Statement(how))
            case Statement():
                return execute(connection, item)
        return []


class AdoptedSQLite:
    """A user's `sqlite3.Connection`: steps run where they are called, in the user's transaction.

    Without an open transaction, one is begun as the connection's own mode would: left open for the user to
    commit, or, in autocommit mode, committed at once.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._depth = 0
        self._own = False

    async def run(self, steps: Steps[T]) -> T:
        """Run steps in the user's transaction."""
        # A user's row_factory does not reach our cursors, but a text_factory would.
        factory, self._connection.text_factory = self._connection.text_factory, str
        try:
            return drive(steps, self._run)
        finally:
            self._connection.text_factory = factory

    def _run(self, item: Item) -> Rows:
        match item:
            case "savepoint":
                self._begin()
                self._depth += 1
                execute(self._connection, Statement(f"SAVEPOINT staffa_{self._depth}"))
            case "release":
                execute(self._connection, Statement(f"RELEASE staffa_{self._depth}"))
                self._depth -= 1
                self._end("COMMIT")
            case "rollback_to":
                if self._connection.in_transaction:
                    execute(self._connection, Statement(f"ROLLBACK TO staffa_{self._depth}"))
                    execute(self._connection, Statement(f"RELEASE staffa_{self._depth}"))
                self._depth -= 1
                self._end("ROLLBACK")
            case Statement():
                self._begin()
                try:
                    rows = execute(self._connection, item)
                except BaseException:
                    self._end("ROLLBACK")
                    raise
                self._end("COMMIT")
                return rows
        return []

    def _begin(self) -> None:
        # A SAVEPOINT outside of a transaction would commit when it is released.
        if not self._connection.in_transaction:
            self._own = commits_by_itself(self._connection)
            execute(self._connection, Statement("BEGIN IMMEDIATE" if self._own else "BEGIN"))

    def _end(self, how: str) -> None:
        if self._own and self._depth == 0:
            self._own = False
            if self._connection.in_transaction:
                execute(self._connection, Statement(how))
