"""What differs between the databases: how a measurement gets a fresh one, asks it, brings it to rest and drops it.

A `Server` is what was given on the command line; it makes a `Database` for every measurement. Nothing else in the
benchmark, its contenders apart, knows which database it measures.
"""

import asyncio
import sqlite3
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg

from benchmarks.statements import recorded


class Refused(Exception):
    """The server cannot be used; says why, and what it needs."""


class Database(ABC):
    """The database of one measurement, new and empty."""

    url: str
    # Where the process that is measured writes its statements down when it is asked to.
    trace: Path

    @abstractmethod
    def ask(self, statement: str) -> int:
        """The number that a connection of our own gets."""

    @abstractmethod
    def settle(self) -> None:
        """The same start for all: nothing left to be written, and fresh statistics."""

    @abstractmethod
    def statements(self) -> Counter[str]:
        """How often each statement was sent so far, as far as that can be known."""

    @abstractmethod
    def drop(self) -> None:
        """Take it away, whoever is still connected."""


class Server(ABC):
    """Where databases are made, and who can be measured on them."""

    title: ClassVar[str]
    # The contenders by name, and their modules; what follows the dash in the name of a form of one.
    contenders: ClassVar[Mapping[str, str]]
    forms: ClassVar[str]
    errors: ClassVar[tuple[type[Exception], ...]]

    @abstractmethod
    def check(self) -> None:
        """Raise `Refused` unless everything that a measurement does can be done."""

    @abstractmethod
    def description(self) -> str:
        """The version, and what decides about the price of a commit, for the head of the report."""

    @abstractmethod
    def fresh(self, folder: Path) -> Database:
        """A new and empty database; the folder is for what goes with it."""


def server(url: str) -> Server:
    """The server that is meant by a URL, `sqlite` or `postgresql://user@host:port/name`."""
    match urlsplit(url).scheme or url:
        case "sqlite":
            return SQLite()
        case "postgresql" | "postgres":
            return Postgres(url)
        case other:
            raise Refused(f"expected sqlite or postgresql://user@host:port/name, got: {other}")


class SQLite(Server):
    title = "SQLite"
    contenders: ClassVar = {
        "staffa": "benchmarks.contenders.staffa_sqlite",
        "floor": "benchmarks.floors.sqlite",
        "huey": "benchmarks.contenders.huey_sqlite",
    }
    forms = "The suffix of a name is its `PRAGMA synchronous`."
    errors = (sqlite3.Error,)

    def check(self) -> None:
        pass  # a file can always be made

    def description(self) -> str:
        return f"SQLite {sqlite3.sqlite_version}"

    def fresh(self, folder: Path) -> Database:
        return SQLiteFile(folder)


class SQLiteFile(Database):
    """A file in the folder of the measurement, which goes with it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "jobs.db"
        self.url = f"sqlite:///{self.path}"
        self.trace = folder / "statements"

    def ask(self, statement: str) -> int:
        with closing(sqlite3.connect(f"file:{self.path}?mode=ro", uri=True, timeout=10)) as connection:
            return int(connection.execute(statement).fetchone()[0])

    def settle(self) -> None:
        with closing(sqlite3.connect(self.path)) as connection:
            connection.execute("PRAGMA wal_checkpoint(truncate)")

    def statements(self) -> Counter[str]:
        return recorded(self.trace)

    def drop(self) -> None:
        pass


class Postgres(Server):
    title = "PostgreSQL"
    contenders: ClassVar = {
        "staffa": "benchmarks.contenders.staffa_postgres",
        "floor": "benchmarks.floors.postgres",
        "mini": "benchmarks.floors.mini_pg",
        "pgqueuer": "benchmarks.contenders.pgqueuer_pg",
        "oban": "benchmarks.contenders.oban_py",
    }
    forms = (
        "The suffix of floor is the index of its table, that of pgqueuer and oban their batch size or limit."
    )
    errors = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError)

    def __init__(self, url: str) -> None:
        self.url = url
        self._session: Session | None = None

    @property
    def session(self) -> "Session":
        """A connection for making and dropping, to a database that is none of ours."""
        if self._session is None:
            self._session = self._connected()
        return self._session

    def _connected(self) -> "Session":
        try:
            return Session(self.url)
        except asyncpg.InvalidCatalogNameError:
            return Session(_named(self.url, "postgres"))  # the name of the database may be anything

    def check(self) -> None:
        try:
            database = self.fresh(Path())
            try:
                database.settle()
            finally:
                database.drop()
        except self.errors as error:
            raise Refused(
                f"The benchmark makes and drops databases of its own (staffa_bench_…) on the given server, and runs "
                f"CHECKPOINT there. {self._place()} does not let it: {error}. Expected a server that listens there, and a "
                f"user with CREATEDB who is a superuser or a member of pg_checkpoint."
            ) from error

    def _place(self) -> str:
        parts = urlsplit(self.url)
        return f"{parts.hostname or 'localhost'}:{parts.port or 5432}, user {parts.username or '(default)'},"

    def description(self) -> str:
        shown = (f"{name} {self.session.value(f'SHOW {name}')}" for name in ("fsync", "synchronous_commit"))
        return f"PostgreSQL {self.session.value('SHOW server_version').split()[0]} ({', '.join(shown)})"

    def fresh(self, folder: Path) -> Database:
        return PostgresDatabase(self, f"staffa_bench_{uuid4().hex[:12]}", folder)


class PostgresDatabase(Database):
    """A database of its own on the given server."""

    def __init__(self, server: Postgres, name: str, folder: Path) -> None:
        server.session.execute(f"CREATE DATABASE {name}")
        self.url = _named(server.url, name)
        self.trace = folder / "statements"
        self._server, self._name = server, name
        self._session: Session | None = None

    @property
    def session(self) -> "Session":
        if self._session is None:
            self._session = Session(self.url)
        return self._session

    def ask(self, statement: str) -> int:
        return int(self.session.value(statement))

    def settle(self) -> None:
        self.session.execute("VACUUM ANALYZE")
        self.session.execute("CHECKPOINT")

    def statements(self) -> Counter[str]:
        """As pg_stat_statements counts them; if the server has not loaded it, those that were seen to go through
        asyncpg; for other drivers the transactions, which are of several statements each and counted late."""
        with suppress(asyncpg.PostgresError):
            self.session.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
            return Counter({" ".join(text.split()): calls for text, calls in self.session.rows(STATEMENTS)})
        seen = recorded(self.trace)
        return seen or Counter({"(transactions)": self._server.session.value(TRANSACTIONS, self._name)})

    def drop(self) -> None:
        if self._session is not None:
            self._session.close()
        self._server.session.execute(f"DROP DATABASE {self._name} WITH (FORCE)")


STATEMENTS = """
SELECT query, sum(calls)::bigint FROM pg_stat_statements
WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND query NOT LIKE '%pg_stat_statements%'
GROUP BY query
"""
TRANSACTIONS = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = $1"


class Session:
    """A connection for callers that have no event loop."""

    def __init__(self, url: str) -> None:
        self._runner = asyncio.Runner()
        try:
            self._connection = self._runner.run(asyncpg.connect(url))
        except BaseException:
            self._runner.close()
            raise

    def execute(self, statement: str) -> None:
        self._runner.run(self._connection.execute(statement))

    def value(self, statement: str, *values: object) -> Any:
        return self._runner.run(self._connection.fetchval(statement, *values))

    def rows(self, statement: str) -> list[Any]:
        return self._runner.run(self._connection.fetch(statement))

    def close(self) -> None:
        self._runner.run(self._connection.close())
        self._runner.close()


def _named(url: str, database: str) -> str:
    """The same server, another database."""
    return urlsplit(url)._replace(path=f"/{database}").geturl()
