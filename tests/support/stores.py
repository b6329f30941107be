"""The databases that the contract suite runs on. To add an engine: a subclass of `Store`, and its entry in `ENGINES`."""

import itertools
import re
import sqlite3
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from staffa.jobs import JobState
from staffa.steps import Rows, Statement, Steps
from tests.support.postgres_store import PostgresStore
from tests.support.store import Odd, Plan, Store

__all__ = ["ENGINES", "SQLiteStore", "SQLiteUser"]

FILL = """
INSERT INTO {jobs} (state, queue, worker, args, attempt, priority, attempted_by, inserted_at, scheduled_at,
    attempted_at, completed_at, discarded_at, cancelled_at)
WITH RECURSIVE numbers(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM numbers WHERE i + 1 < :count),
    drafts AS (SELECT i, json_extract(:states, '$[' || (i % 8) || ']') AS state,
        strftime('%Y-%m-%d %H:%M:%S', 1700000000 + i, 'unixepoch') || '.000000' AS at FROM numbers)
SELECT state, 'queue-' || (i / 8 % 5), 'tests.Filler', json_object('n', i), 1, i / 40 % 3,
    CASE WHEN state NOT IN ('available', 'scheduled') THEN json_array('node-' || (i % 7), 'uuid-' || (i % 7)) END,
    at, at, at,
    CASE state WHEN 'completed' THEN at END,
    CASE state WHEN 'discarded' THEN at END,
    CASE state WHEN 'cancelled' THEN at END
FROM drafts
"""


# Any column can hold anything.
ODD: Odd = {
    "odd_row": {
        "meta null": {"meta": "null"},
        "meta a list": {"meta": "[1]"},
        "meta not JSON": {"meta": "{oops"},
        "meta empty": {"meta": ""},
        "args a list": {"args": "[1, 2]"},
        "args not JSON": {"args": "nothing"},
        "errors an object": {"errors": "{}"},
        "errors not JSON": {"errors": "["},
        "errors odd inside": {"errors": '[1, "x", null]'},
        "tags not JSON": {"tags": "a, b"},
        "inserted_at unparsable": {"inserted_at": "yesterday at half past six"},
        "inserted_at a blob": {"inserted_at": b"\x00" * 26},
        "scheduled_at short": {"scheduled_at": "2020-01-01"},
        "priority below": {"priority": -5},
        "priority text": {"priority": "high"},
        "attempted_by not JSON": {"attempted_by": "me"},
        "attempted_by an object": {"attempted_by": '{"a": 1}'},
        "attempt beyond max_attempts": {"attempt": 99, "max_attempts": 3},
        "attempt below": {"attempt": -3},
    },
    "odd_meta": {meta: {"meta": meta} for meta in ("limit=3", "", "[1]", "null", "7", "{")},
    "odd_claimant": {
        by: {"by": by} for by in ("me", "{}", "[]", '["node"]', "null", "[1, 2]", '["node", null]', "")
    },
}


class SQLiteUser:
    """A `sqlite3.Connection` as a user has opened it."""

    def __init__(self, connection: sqlite3.Connection, *, commits_by_itself: bool) -> None:
        self.connection = connection
        self.commits_by_itself = commits_by_itself

    async def execute(self, text: str) -> Rows:
        """Run a statement; rows as plain tuples of text."""
        rows = [tuple(row) for row in self.connection.execute(text).fetchall()]
        return [tuple(one.decode() if isinstance(one, bytes) else one for one in row) for row in rows]

    async def begin(self) -> None:
        """Open a transaction, where the connection's mode has not opened one already."""
        if not self.connection.in_transaction:
            self.connection.execute("BEGIN")

    async def commit(self) -> None:
        """Commit it; in the mode that commits by itself, `connection.commit()` may do nothing."""
        if self.commits_by_itself:
            self.connection.execute("COMMIT")
        else:
            self.connection.commit()

    async def rollback(self) -> None:
        """Roll it back."""
        if self.commits_by_itself:
            self.connection.execute("ROLLBACK")
        else:
            self.connection.rollback()

    def in_transaction(self) -> bool:
        """Is one open?"""
        return self.connection.in_transaction

    async def settings(self) -> object:
        """What a user may set."""
        names = ("row_factory", "text_factory", "isolation_level", "autocommit")
        return [getattr(self.connection, name, None) for name in names]


class _Subclass(sqlite3.Connection):
    """Some users have a class of their own."""


class SQLiteStore(Store):
    """A file of its own."""

    options: Mapping[str, dict[str, Any]] = {
        "default": {},
        "immediate": {"isolation_level": "IMMEDIATE"},
        "autocommit": {"isolation_level": None},
        "subclass": {"factory": _Subclass},
        "row_factory": {},
        "dict_factory": {"isolation_level": None},
        "bytes": {},
        "bytes-autocommit": {"isolation_level": None},
        **(
            {"autocommit=False": {"autocommit": False}, "autocommit=True": {"autocommit": True}}
            if sys.version_info >= (3, 12)
            else {}
        ),
    }
    users = tuple(options)
    odd = ODD

    @classmethod
    @asynccontextmanager
    async def fresh(cls, folder: Path) -> AsyncGenerator["SQLiteStore", None]:
        """A new file; the disk need not be asked to keep it beyond the test."""
        async with AsyncExitStack() as stack:
            store = cls(f"sqlite:///{folder / 'contract.db'}?synchronous=normal", stack)
            await store.run(store.engine.migrations.up())
            yield store

    async def raw_connection(self, **options: Any) -> sqlite3.Connection:
        """Any options that `sqlite3.connect` takes."""
        path = self.url.removeprefix("sqlite:///").partition("?")[0]
        connection: sqlite3.Connection = sqlite3.connect(path, **options)
        self.stack.callback(connection.close)
        return connection

    async def user(self, kind: str) -> SQLiteUser:
        """A connection of one of the kinds in `users`."""
        options = self.options[kind]
        connection = await self.raw_connection(**options)
        if kind == "row_factory":
            connection.row_factory = sqlite3.Row
        if kind == "dict_factory":
            connection.row_factory = lambda cursor, row: dict(zip(_names(cursor), row, strict=True)).values()
        if kind.startswith("bytes"):
            connection.text_factory = bytes
        alone = options.get("isolation_level", "") is None or options.get("autocommit") is True
        return SQLiteUser(connection, commits_by_itself=alone)

    async def fill(self, count: int) -> None:
        """Of every state alike, in five queues, three priorities, under seven producers."""
        states = "[" + ",".join(f'"{state}"' for state in JobState) + "]"
        await self.sql(FILL, count=count, states=states)

    async def analyze(self) -> None:
        """Gather statistics, as users are told to."""
        await self.sql("ANALYZE")

    async def plan(self, statement: Statement) -> Plan:
        """What `EXPLAIN QUERY PLAN` says."""
        rows = await self.run(_explained(statement))
        details = [str(row[3]) for row in rows]
        jobs = [detail for detail in details if re.match(r"(SEARCH|SCAN) oban_jobs\b", detail)]
        return Plan(
            indexes=[_index(detail) for detail in jobs],
            scans=any(detail.startswith("SCAN") and "INDEX" not in detail for detail in jobs),
            sorts=any("TEMP B-TREE" in detail for detail in details),
            text="\n".join(details),
        )

    async def effort(self, statement: Statement) -> int:
        """How many steps SQLite's virtual machine takes, in tens."""
        connection, ticks = await self.raw_connection(), itertools.count()
        connection.set_progress_handler(lambda: next(ticks) < 0, 10)
        connection.execute(statement.text, statement.parameters).fetchall()
        return next(ticks)


ENGINES: Mapping[str, type[Store]] = {"sqlite": SQLiteStore, "postgres": PostgresStore}


def _explained(statement: Statement) -> Steps[Rows]:
    return (yield Statement(f"EXPLAIN QUERY PLAN {statement.text}", statement.parameters))


def _index(detail: str) -> str:
    if "USING INTEGER PRIMARY KEY" in detail:
        return "PRIMARY KEY"
    found = re.search(r"USING (?:COVERING )?INDEX (\w+)", detail)
    return found[1] if found else "none"


def _names(cursor: sqlite3.Cursor) -> list[str]:
    return [column[0] for column in cursor.description]
