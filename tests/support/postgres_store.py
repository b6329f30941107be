"""PostgreSQL under the contract suite: one database per test process, emptied before each test."""

import asyncio
import atexit
import json
import os
import re
import uuid
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeAlias, cast

import asyncpg

from staffa.connections.parameters import numbered
from staffa.jobs import JobState
from staffa.steps import Rows, Statement
from tests.support.servers import query, running_postgres, with_database
from tests.support.store import SPELLED, Odd, Plan, Store

__all__ = ["PostgresStore", "PostgresUser", "drop_stale_databases"]

Connection: TypeAlias = "asyncpg.Connection[Any]"

DATABASE = "staffa_test_"

FILL = """
INSERT INTO {jobs} (state, queue, worker, args, attempt, priority, attempted_by, inserted_at, scheduled_at,
    attempted_at, completed_at, discarded_at, cancelled_at)
SELECT state::oban_job_state, 'queue-' || (i / 8 % 5), 'tests.Filler', jsonb_build_object('n', i), 1, i / 40 % 3,
    CASE WHEN state NOT IN ('available', 'scheduled') THEN ARRAY['node-' || (i % 7), 'uuid-' || (i % 7)] END,
    at, at, at,
    CASE state WHEN 'completed' THEN at END,
    CASE state WHEN 'discarded' THEN at END,
    CASE state WHEN 'cancelled' THEN at END
FROM generate_series(0, $1::int - 1) AS i,
    LATERAL (SELECT ($2::text[])[i % 8 + 1] AS state, timestamp '2023-11-14 22:13:20' + i * interval '1 second' AS at) AS d
"""

# The columns have types, which are wider than what Staffa writes.
ODD: Odd = {
    "odd_row": {
        "meta NULL": {"meta": None},
        "meta null": {"meta": "null"},
        "meta a list": {"meta": "[1]"},
        "meta a number": {"meta": "7"},
        "meta counting in words": {"meta": '{"snoozed": "twice", "rescued": [1]}'},
        "meta counting far": {"meta": '{"snoozed": 1e400, "rescued": 1e400}'},
        "args null": {"args": "null"},
        "args a list": {"args": "[1, 2]"},
        "args a text": {"args": '"nothing"'},
        "args beyond floats": {"args": '{"n": [1e400, -1e400, 1e-400], "m": 123456789012345678901234567890}'},
        "args very deep": {"args": "[" * 3_000 + "]" * 3_000},
        "errors odd inside": {"errors": '[1, "x", null, {}, [[]]]'},
        "tags NULL": {"tags": None},
        "tags NULL inside": {"tags": '["a", null]'},
        "inserted_at infinite": {"inserted_at": "infinity"},
        "inserted_at before Christ": {"inserted_at": "0044-03-15 12:00:00 BC"},
        "inserted_at in a far year": {"inserted_at": "294276-12-31 23:59:59.999999"},
        "scheduled_at before everything": {"scheduled_at": "-infinity"},
        "scheduled_at before Christ": {"scheduled_at": "4713-01-01 00:00:00 BC"},
        "priority beyond": {"priority": 10},
        "priority far beyond": {"priority": 2**31 - 1},
        "attempted_by empty": {"attempted_by": "[]"},
        "attempted_by a node alone": {"attempted_by": '["node"]'},
        "attempted_by with NULL": {"attempted_by": '["node", null]'},
        "attempted_by three": {"attempted_by": '["node", "somebody", "else"]'},
        "attempt far": {"attempt": 2**31 - 3, "max_attempts": 2**31 - 1},
    },
    "odd_meta": {meta: {"meta": meta} for meta in ("[1]", "null", "7", '"limit=3"', "true", "1e400")},
    "odd_claimant": {str(by): {"by": by} for by in (None, "[]", '["node"]', "[null]", '["node", null]')},
}

# Everything that a migration makes, and what a test may leave behind, by name.
INVENTORY = """
SELECT CASE relkind WHEN 'r' THEN 'table' ELSE 'relation' END, relname::text
    FROM pg_class WHERE relnamespace = to_regnamespace('public')
UNION ALL SELECT 'column', concat_ws(' ', relname, attname, format_type(atttypid, atttypmod))
    FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
    WHERE relnamespace = to_regnamespace('public') AND relkind = 'r' AND attnum > 0
UNION ALL SELECT 'comment', concat_ws(' ', relname, description)
    FROM pg_description JOIN pg_class ON pg_class.oid = objoid WHERE relnamespace = to_regnamespace('public')
UNION ALL SELECT DISTINCT 'statistics', relname
    FROM pg_statistic JOIN pg_class ON pg_class.oid = starelid WHERE relnamespace = to_regnamespace('public')
UNION ALL SELECT 'constraint', conname FROM pg_constraint WHERE connamespace = to_regnamespace('public')
UNION ALL SELECT 'type', typname FROM pg_type WHERE typnamespace = to_regnamespace('public')
UNION ALL SELECT 'routine', proname FROM pg_proc WHERE pronamespace = to_regnamespace('public')
UNION ALL SELECT 'trigger', tgname FROM pg_trigger WHERE NOT tgisinternal
UNION ALL SELECT 'schema', nspname FROM pg_namespace WHERE nspname NOT LIKE 'pg\\_%' AND nspname <> 'information_schema'
ORDER BY 1, 2
"""

# What of a test before still holds a lock: it would be waited for for ever.
END_OPEN_TRANSACTIONS = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
    AND state IS DISTINCT FROM 'idle'
"""

STALE_DATABASES = """
SELECT datname FROM pg_database d
WHERE starts_with(datname, $1) AND NOT EXISTS (SELECT 1 FROM pg_stat_activity a WHERE a.datname = d.datname)
"""

SESSION_SETTINGS = "SELECT name, setting FROM pg_settings WHERE source = 'session' ORDER BY name"
TYPED = """SELECT '{"a": 1}'::jsonb, '[1]'::json, 1.50::numeric, timestamp '2020-01-01', timestamptz '2020-01-01 00:00Z',
    '00000000-0000-0000-0000-000000000001'::uuid, ARRAY['{}'::jsonb], ARRAY['x'], 1::bigint, 1.5::float8"""


class _Record(asyncpg.Record):
    """Some users read columns as attributes."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


class PostgresUser:
    """An asyncpg connection as a user has opened it."""

    commits_by_itself = True

    def __init__(self, connection: Any, **options: Any) -> None:
        self.connection = connection
        self._options = options
        self._transaction: Any = None

    async def execute(self, text: str) -> Rows:
        """Run a statement; rows as plain tuples."""
        return [tuple(row) for row in await self.connection.fetch(text)]

    async def begin(self) -> None:
        """Open a transaction."""
        self._transaction = self.connection.transaction(**self._options)
        await self._transaction.start()

    async def commit(self) -> None:
        """Commit it."""
        await self._transaction.commit()

    async def rollback(self) -> None:
        """Roll it back."""
        await self._transaction.rollback()

    def in_transaction(self) -> bool:
        """Is one open?"""
        return bool(self.connection.is_in_transaction())

    async def settings(self) -> object:
        """What a user may set: in the session, how rows come, and as what their values."""
        [row] = await self.connection.fetch(TYPED)
        values = [type(row).__name__, *(repr(value) for value in row)]
        return values, await self.execute(SESSION_SETTINGS)


class _Database:
    """This process's database on the server, made when it is first asked for and dropped when the process ends."""

    def __init__(self, server: str) -> None:
        self.server = server
        self.name = f"{DATABASE}{os.getpid()}"
        self.url = with_database(server, self.name)
        self.pid = os.getpid()
        self.tables: Rows = []
        self.worn = True
        """Has a test left traces that emptying the tables does not take away?"""

    async def create(self) -> None:
        """Make it."""
        await query(self.server, f'DROP DATABASE IF EXISTS "{self.name}" WITH (FORCE)')
        await query(self.server, f'CREATE DATABASE "{self.name}"')
        atexit.register(self.drop)

    def drop(self) -> None:
        """Take it away, unless this is a forked child of the process that made it."""
        if self.pid == os.getpid():
            with suppress(OSError, asyncpg.PostgresError):
                asyncio.run(query(self.server, f'DROP DATABASE IF EXISTS "{self.name}" WITH (FORCE)'))


async def drop_stale_databases(server: str) -> None:
    """Drop those of processes that have died without dropping theirs."""
    for (name,) in await query(server, STALE_DATABASES, DATABASE):
        if not _lives(name):
            with suppress(asyncpg.PostgresError):  # another process drops it too
                await query(server, f'DROP DATABASE IF EXISTS "{name}"')


class PostgresStore(Store):
    """The one database of this process, as a migration leaves it."""

    kinds: Mapping[str, dict[str, Any]] = {
        "plain": {},
        "codecs": {},
        "no-cache": {"statement_cache_size": 0},
        "record-class": {"record_class": _Record},
        "pool": {},
        "repeatable-read": {},
    }
    users = tuple(kinds)
    odd = ODD
    spelled: ClassVar[Mapping[str, str]] = {
        **SPELLED,
        "errors": "ARRAY(SELECT jsonb_array_elements(:errors::text::jsonb))",
    }
    database: _Database | None = None

    @classmethod
    @asynccontextmanager
    async def fresh(cls, folder: Path) -> AsyncGenerator["PostgresStore", None]:
        """Its tables emptied, and made anew where the test before has changed them."""
        database = await cls._made()
        async with AsyncExitStack() as stack:
            store = cls(database.url, stack)
            await store._empty(database)
            yield store

    @classmethod
    async def _made(cls) -> _Database:
        if cls.database is None:
            server = await running_postgres()
            await drop_stale_databases(server)
            database = _Database(server)
            await database.create()
            cls.database = database
        return cls.database

    async def _empty(self, database: _Database) -> None:
        connection = await asyncpg.connect(self.url)
        try:
            await connection.execute(END_OPEN_TRANSACTIONS)
            await _drop_orders(connection)
            if database.worn or database.tables != await self._inventory(connection):
                database.worn = True
                await self._rebuild(connection)
                database.tables = await self._inventory(connection)
                database.worn = False
            else:
                await connection.execute(f"TRUNCATE {', '.join(_ours(database.tables))} RESTART IDENTITY")
        finally:
            await connection.close()

    async def _rebuild(self, connection: Connection) -> None:
        for kind, name in await self._inventory(connection):
            if kind == "schema":
                await connection.execute(f'DROP SCHEMA "{name}" CASCADE')
        await connection.execute("CREATE SCHEMA public")
        await self.run(self.engine.migrations.up())

    async def _inventory(self, connection: Connection) -> Rows:
        found = [tuple(row) for row in await connection.fetch(INVENTORY)]
        if ("table", "staffa_migrations") in found:
            found += [
                ("version", row[0]) for row in await connection.fetch("SELECT version FROM staffa_migrations")
            ]
        return found

    async def raw_connection(self, **options: Any) -> Connection:
        """Any options that `asyncpg.connect` takes."""
        connection: Connection = await asyncpg.connect(self.url, **options)
        self.stack.push_async_callback(connection.close, timeout=10)
        return connection

    async def listening(self, channel: str) -> list[str]:
        """The payloads that are heard on a channel from now on."""
        heard: list[str] = []

        def hear(_: object, pid: int, name: str, payload: object) -> None:
            heard.append(str(payload))

        connection = await self.raw_connection()
        await connection.add_listener(channel, hear)
        self.stack.push_async_callback(connection.reset)
        return heard

    async def user(self, kind: str) -> PostgresUser:
        """A connection of one of the kinds in `users`."""
        if kind == "pool":
            return PostgresUser(await self._acquired())
        connection = await self.raw_connection(**self.kinds[kind])
        if kind == "codecs":
            await _set_codecs(connection)
        if kind == "repeatable-read":
            return PostgresUser(connection, isolation="repeatable_read")
        return PostgresUser(connection)

    async def _acquired(self) -> Any:
        pool = await asyncpg.create_pool(self.url, min_size=1, max_size=2)
        self.stack.push_async_callback(pool.close)
        connection = await pool.acquire()
        self.stack.push_async_callback(partial(pool.release, connection))
        return connection

    async def fill(self, count: int) -> None:
        """Of every state alike, in five queues, three priorities, under seven producers.

        The table is kept from autovacuum, which would analyze it behind the test's back.
        """
        assert self.database is not None
        self.database.worn = True
        connection = await self.raw_connection()
        await connection.execute("ALTER TABLE oban_jobs SET (autovacuum_enabled = false)")
        await connection.execute(self._rendered(FILL), count, list(JobState), timeout=300)

    async def analyze(self) -> None:
        """Gather statistics, as autovacuum does."""
        assert self.database is not None
        self.database.worn = True
        await (await self.raw_connection()).execute("VACUUM ANALYZE", timeout=300)

    async def plan(self, statement: Statement) -> Plan:
        """What `EXPLAIN` says of the plan that is made for any parameters."""
        [plan] = await self._explained(statement, "")
        nodes = list(_nodes(plan["Plan"]))
        return Plan(
            indexes=[_index(node) for node in nodes if _index(node)],
            scans=any(_reads_jobs(node) and node["Node Type"] == "Seq Scan" for node in nodes),
            sorts=any(_sorts_jobs(node) for node in nodes),
            text="\n".join(_shown(plan["Plan"])),
        )

    async def effort(self, statement: Statement) -> int:
        """How many rows of jobs it looks at, and how many pairs of rows it compares in vain."""
        [plan] = await self._explained(statement, "ANALYZE, ")
        return 1 + sum(_looked_at(node) for node in _nodes(plan["Plan"]))

    async def _explained(self, statement: Statement, options: str) -> Any:
        """The plan is that of a prepared statement, which is what runs; nothing that it does is kept."""
        text, names = numbered(statement.text)
        connection = await asyncpg.connect(self.url, statement_cache_size=0)
        try:
            await connection.execute("BEGIN; SET LOCAL plan_cache_mode = force_generic_plan")
            await connection.execute(f"PREPARE explained AS {text}")
            values = ", ".join([_literal(statement.parameters[name]) for name in names])
            execute = f"EXECUTE explained ({values})" if names else "EXECUTE explained"
            return json.loads(await connection.fetchval(f"EXPLAIN ({options}FORMAT JSON) {execute}"))
        finally:
            await connection.close()

    def _rendered(self, template: str) -> str:
        return self.engine.migrations.dialect.render(template)


async def _drop_orders(connection: Connection) -> None:
    """The table that users have in the tests, which is no reason to make ours anew."""
    await connection.execute("SET client_min_messages = error; DROP TABLE IF EXISTS orders CASCADE")


async def _set_codecs(connection: Connection) -> None:
    """What users set so that values come as they like them."""
    for name in ("json", "jsonb"):
        await connection.set_type_codec(name, encoder=json.dumps, decoder=json.loads, schema="pg_catalog")
    for name, encoder, decoder in (
        ("numeric", str, float),
        ("float8", str, Decimal),
        ("timestamp", str, str),
        ("timestamptz", str, str),
        ("uuid", str, uuid.UUID),
    ):
        await connection.set_type_codec(name, encoder=encoder, decoder=decoder, schema="pg_catalog")


def _lives(database: str) -> bool:
    """Does the process that made this database live?"""
    found = re.fullmatch(rf"{DATABASE}(\d+)", database)
    if found is None:
        return True
    try:
        os.kill(int(found[1]), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _ours(inventory: Rows) -> list[str]:
    """The tables to empty: all that have jobs, producers and the like, but not the list of migrations."""
    return [f'"{name}"' for kind, name in inventory if kind == "table" and name != "staffa_migrations"]


def _literal(value: object) -> str:
    """A value in the text of a statement; its type is that of the parameter it stands for."""
    if value is None:
        return "NULL"
    text = _array(cast("Iterable[object]", value)) if isinstance(value, (list, tuple)) else str(value)
    quoted = text.replace("'", "''")
    return f"'{quoted}'"


def _array(values: Iterable[object]) -> str:
    texts = [
        None if value is None else str(value).replace("\\", "\\\\").replace('"', '\\"') for value in values
    ]
    return "{" + ",".join("NULL" if text is None else f'"{text}"' for text in texts) + "}"


def _nodes(plan: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from _nodes(child)


def _index(node: Mapping[str, Any]) -> str:
    """By what a node finds jobs; empty if it does not look for any."""
    name = str(node.get("Index Name", ""))
    if name == "oban_jobs_pkey":
        return "PRIMARY KEY"
    if name.startswith("oban_jobs"):
        return name
    return "none" if _reads_jobs(node) and node["Node Type"] == "Seq Scan" else ""


def _reads_jobs(node: Mapping[str, Any]) -> bool:
    """A bitmap's heap scan reads what its index scan, which stands by itself, has found."""
    return node.get("Relation Name") == "oban_jobs" and node["Node Type"] != "ModifyTable"


def _sorts_jobs(node: Mapping[str, Any]) -> bool:
    return "Sort" in node["Node Type"] and any(_reads_jobs(below) for below in _nodes(node))


def _looked_at(node: Mapping[str, Any]) -> int:
    in_vain = sum(number for name, number in node.items() if name.startswith("Rows Removed by"))
    found = node["Actual Rows"] if _reads_jobs(node) else 0
    return int((found + in_vain) * node["Actual Loops"])


def _shown(node: Mapping[str, Any], depth: int = 0) -> Iterator[str]:
    details = ("Relation Name", "Index Name", "Index Cond", "Filter", "Sort Key", "Plan Rows", "Total Cost")
    said = ", ".join(f"{name}: {node[name]}" for name in details if name in node)
    yield f"{'  ' * depth}{node['Node Type']} ({said})"
    for child in node.get("Plans", ()):
        yield from _shown(child, depth + 1)
