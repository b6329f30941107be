"""SQLite through the standard library's driver: opening a file, running a statement, translating errors."""

import os
import sqlite3
import threading
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from staffa import clock
from staffa.connections.base import URL
from staffa.errors import DatabaseError, DatabaseUnavailable, InvalidOption, SchemaError
from staffa.options import did_you_mean
from staffa.steps import Rows, Statement

__all__ = [
    "BEGIN",
    "Settings",
    "commit",
    "commits_by_itself",
    "connect",
    "execute",
    "file_of",
    "roll_back",
    "settings_of",
]

BEGIN = Statement("BEGIN IMMEDIATE")

# Bytes that the log keeps when all of it has been written back. It grows while somebody reads for a long time, and
# without a limit it would stay as large as it ever was.
LOG_LIMIT = 64 * 1024 * 1024

# Whoever wrote text that is not UTF-8 must not keep everybody from reading the rows beside it.
_as_text = partial(str, encoding="utf-8", errors="replace")

UNAVAILABLE = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_PROTOCOL,
}


@dataclass(frozen=True, slots=True)
class Settings:
    """What the URL says about a file."""

    path: str
    synchronous: str
    busy_timeout: float

    @property
    def key(self) -> str:
        return os.path.realpath(self.path)

    def __str__(self) -> str:
        return f"synchronous={self.synchronous.lower()} and busy_timeout={self.busy_timeout:g}"


def settings_of(url: URL) -> Settings:
    known = ("synchronous", "busy_timeout")
    for name in url.options:
        if name not in known:
            raise InvalidOption(f"url: unknown option {name!r}{did_you_mean(name, known)}", option="url")
    if not url.path or url.path == ":memory:":
        raise InvalidOption(
            "expected url to name a file, like sqlite:///jobs.db: threads and processes share it, and nobody "
            f"can share a database in memory; got: {url.safe}",
            option="url",
        )
    synchronous = url.options.get("synchronous", "full").upper()
    if synchronous not in ("FULL", "NORMAL"):
        raise InvalidOption(
            f"expected synchronous to be full or normal, got: {url.options['synchronous']!r}", option="url"
        )
    try:
        busy_timeout = float(url.options.get("busy_timeout", "10"))
    except ValueError:
        busy_timeout = -1
    if not 0 <= busy_timeout <= 3600:
        raise InvalidOption(
            f"expected busy_timeout to be seconds from 0 to 3600, got: {url.options['busy_timeout']!r}",
            option="url",
        )
    return Settings(os.path.abspath(url.path), synchronous, busy_timeout)


def connect(settings: Settings) -> sqlite3.Connection:
    folder = Path(settings.path).parent
    if not folder.is_dir():
        raise DatabaseError(f"cannot open {settings.path}: there is no folder {folder}; make it first")
    if sqlite3.sqlite_version_info < (3, 35):
        raise DatabaseError(
            f"expected SQLite 3.35 or newer, got: {sqlite3.sqlite_version}; use a newer Python build"
        )
    try:
        connection = sqlite3.connect(
            settings.path,
            timeout=settings.busy_timeout,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=256,
        )
    except sqlite3.Error as error:
        raise _translated(error, settings.path) from error
    try:
        _prepare(connection, settings)
    except sqlite3.Error as error:
        connection.close()
        raise _translated(error, settings.path) from error
    return connection


def _prepare(connection: sqlite3.Connection, settings: Settings) -> None:
    connection.text_factory = _as_text
    if os.access(settings.path, os.W_OK):
        _use_wal(connection, settings.busy_timeout)
    connection.execute(f"PRAGMA synchronous = {settings.synchronous}")
    connection.execute("PRAGMA cache_size = -8192")
    connection.execute(f"PRAGMA journal_size_limit = {LOG_LIMIT}")


def _use_wal(connection: sqlite3.Connection, busy_timeout: float) -> None:
    # Two processes that change the mode at the same moment get "locked" at once, busy timeout or not.
    deadline = clock.monotonic() + busy_timeout
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or clock.monotonic() > deadline:
                raise
            threading.Event().wait(0.01)
        else:
            return


def execute(connection: sqlite3.Connection, statement: Statement) -> Rows:
    try:
        # A cursor that failed half-way stays active until it is closed, and no savepoint can end beside it.
        with closing(sqlite3.Cursor(connection)) as cursor:
            cursor.row_factory = None
            if statement.many is not None:
                cursor.executemany(statement.text, statement.many)
                return []
            return cursor.execute(statement.text, statement.parameters).fetchall()
    except sqlite3.Error as error:
        raise _translated(error, _name_of(connection)) from error


def commit(connection: sqlite3.Connection) -> None:
    if connection.in_transaction:
        execute(connection, Statement("COMMIT"))


def roll_back(connection: sqlite3.Connection) -> None:
    if connection.in_transaction:
        connection.rollback()


def commits_by_itself(connection: sqlite3.Connection) -> bool:
    autocommit = getattr(connection, "autocommit", -1)  # Python 3.12 and newer; -1 is the mode of old
    return autocommit is True or (autocommit == -1 and connection.isolation_level is None)


def file_of(connection: sqlite3.Connection) -> str:
    """The path of a connection's main database; empty for one in memory."""
    factory, connection.text_factory = connection.text_factory, _as_text
    try:
        rows = execute(connection, Statement("PRAGMA database_list"))
    finally:
        connection.text_factory = factory
    return next((str(path or "") for _, name, path in rows if name == "main"), "")


def _name_of(connection: sqlite3.Connection) -> str:
    try:
        rows = sqlite3.Cursor(connection).execute("PRAGMA database_list").fetchall()
        return str(rows[0][2] or "the database in memory")
    except sqlite3.Error:
        return "the database"


def _translated(error: sqlite3.Error, name: str) -> DatabaseError:
    code = getattr(error, "sqlite_errorcode", None)
    primary = code & 0xFF if code is not None else None
    if primary == sqlite3.SQLITE_BUSY:
        return DatabaseUnavailable(
            f"{name} is locked: another connection has been writing for too long ({error}); commit it if it is your "
            "own (or pass it as conn=), else find it, or raise ?busy_timeout= in the URL"
        )
    if primary == sqlite3.SQLITE_READONLY:
        return DatabaseError(
            f"{name} is read-only ({error}): make the file and its folder writable for this user"
        )
    if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return DatabaseError(
            f"{name} is not a sound SQLite database ({error}): restore a backup, or look at it with "
            "`PRAGMA integrity_check`"
        )
    if primary in UNAVAILABLE:
        return DatabaseUnavailable(f"{name} cannot be used at the moment: {error}")
    if "no such table: oban_" in str(error) or "no such table: staffa_" in str(error):
        return SchemaError(
            f"{name} lacks a table of Staffa ({error}): run `staffa migrate up --database sqlite:///{name}`"
        )
    if "no such column" in str(error):
        return SchemaError(f"the tables in {name} are outdated ({error}): run `staffa migrate up`")
    return DatabaseError(f"{name}: {error}")
