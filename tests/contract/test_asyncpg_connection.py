"""What can go wrong on a user's asyncpg connection: a sentence says it, and nothing else has happened."""

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import asyncpg
import pytest

from staffa.connections import connections_for, parse_url
from staffa.errors import DatabaseError, DatabaseUnavailable, UnsupportedConnection
from staffa.jobs import Job
from tests.support import PostgresStore, eventually, new_job

Connection = Any


@pytest.fixture
async def conn(postgres: PostgresStore) -> Connection:
    """A user's connection, and a table of the user's."""
    await postgres.sql("CREATE TABLE orders (id integer)")
    return await postgres.raw_connection()


async def enqueue(store: PostgresStore, conn: Connection, count: int = 1, **options: Any) -> Sequence[Job]:
    jobs = [new_job(**options) for _ in range(count)]
    return await store.connections.adopt(conn).run(store.engine.insert_jobs(jobs))


def refused() -> Job:
    job = new_job()
    job.worker = cast("str", None)
    return job


async def orders(store: PostgresStore) -> list[int]:
    return [row[0] for row in await store.sql("SELECT id FROM orders ORDER BY id")]


counts = pytest.mark.parametrize("count", [1, 3, 1_001])


@counts
async def test_an_error_inside_takes_back_only_what_was_enqueued_with_it(
    postgres: PostgresStore, conn: Connection, count: int
) -> None:
    jobs = [*(new_job() for _ in range(count - 1)), refused()]

    async with conn.transaction():
        await conn.execute("INSERT INTO orders VALUES (1)")
        kept = await enqueue(postgres, conn)
        with pytest.raises(DatabaseError, match="null value"):
            await postgres.connections.adopt(conn).run(postgres.engine.insert_jobs(jobs))
        await conn.execute("INSERT INTO orders VALUES (2)")

    assert await orders(postgres) == [1, 2]
    assert list(await postgres.snapshot()) == [kept[0].id]


async def test_the_users_nested_transactions_and_our_savepoints_do_not_meet(
    postgres: PostgresStore, conn: Connection
) -> None:
    async with conn.transaction():
        await enqueue(postgres, conn, queue="kept")
        with suppress(ZeroDivisionError):
            async with conn.transaction():
                await enqueue(postgres, conn, 3, queue="gone")
                raise ZeroDivisionError
        async with conn.transaction():
            await enqueue(postgres, conn, 1_001, queue="kept")
        await conn.execute("SAVEPOINT staffa_0")
        await enqueue(postgres, conn, queue="gone")
        await conn.execute("ROLLBACK TO staffa_0")

    assert await postgres.sql("SELECT queue, count(*) FROM {jobs} GROUP BY queue") == [("kept", 1_002)]


async def test_an_open_cursor_reads_on(postgres: PostgresStore, conn: Connection) -> None:
    seen: list[int] = []

    async with conn.transaction():
        async for row in conn.cursor("SELECT n FROM generate_series(1, 9) AS n", prefetch=2):
            seen.append(row[0])
            await enqueue(postgres, conn, 2)
            with pytest.raises(DatabaseError):
                await postgres.connections.adopt(conn).run(postgres.engine.insert_jobs([refused()]))

    assert seen == list(range(1, 10))
    assert len(await postgres.snapshot()) == 18


@counts
async def test_a_busy_connection_is_refused_and_what_it_does_goes_on(
    postgres: PostgresStore, conn: Connection, count: int
) -> None:
    holder = await postgres.raw_connection()
    await holder.execute("SELECT pg_advisory_lock(7)")
    waiting = asyncio.create_task(conn.fetchval("SELECT 42 FROM pg_advisory_lock(7)"))
    await eventually(lambda: _waits(postgres))

    with pytest.raises(
        DatabaseError, match=r"conn cannot be used: .*another operation.*a connection of its own"
    ):
        await enqueue(postgres, conn, count)

    await holder.execute("SELECT pg_advisory_unlock(7)")
    assert await waiting == 42
    assert await postgres.snapshot() == {}
    await enqueue(postgres, conn)
    assert len(await postgres.snapshot()) == 1


async def _waits(store: PostgresStore) -> bool:
    return bool(await store.sql("SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"))


@counts
async def test_a_closed_connection_is_refused(postgres: PostgresStore, conn: Connection, count: int) -> None:
    await conn.close()

    with pytest.raises(DatabaseError, match="conn cannot be used: connection is closed"):
        await enqueue(postgres, conn, count)

    assert await postgres.snapshot() == {}


@counts
async def test_a_connection_that_was_given_back_to_its_pool_is_refused(
    postgres: PostgresStore, count: int
) -> None:
    async with asyncpg.create_pool(postgres.url, min_size=1, max_size=1) as pool:
        async with pool.acquire() as conn:
            await enqueue(postgres, conn)

        with pytest.raises(DatabaseError, match=r"conn cannot be used: .*released back to the pool"):
            await enqueue(postgres, conn, count)

    assert len(await postgres.snapshot()) == 1


@counts
async def test_a_connection_that_the_server_has_cut_is_unavailable(
    postgres: PostgresStore, conn: Connection, count: int
) -> None:
    await postgres.sql("SELECT pg_terminate_backend(:pid)", pid=conn.get_server_pid())

    with pytest.raises(DatabaseError) as caught:
        await enqueue(postgres, conn, count)

    assert isinstance(caught.value, DatabaseUnavailable) or "closed" in str(caught.value)
    assert await postgres.snapshot() == {}


@counts
async def test_a_transaction_that_only_reads_is_refused_and_stays_usable(
    postgres: PostgresStore, conn: Connection, count: int
) -> None:
    async with conn.transaction(readonly=True):
        with pytest.raises(DatabaseError, match=r"read-only transaction.*takes writes") as caught:
            await enqueue(postgres, conn, count)
        assert await conn.fetchval("SELECT 42") == 42

    assert not isinstance(caught.value, DatabaseUnavailable)
    assert await postgres.snapshot() == {}


@counts
async def test_an_aborted_transaction_is_refused_and_can_be_rolled_back(
    postgres: PostgresStore, conn: Connection, count: int
) -> None:
    await conn.execute("BEGIN")
    await conn.execute("INSERT INTO orders VALUES (1)")
    with pytest.raises(asyncpg.DivisionByZeroError):
        await conn.execute("SELECT 1 / 0")

    with pytest.raises(
        DatabaseError, match="conn is in a transaction that an earlier error has aborted: roll it"
    ):
        await enqueue(postgres, conn, count)

    await conn.execute("ROLLBACK")
    await enqueue(postgres, conn)
    assert await orders(postgres) == []
    assert len(await postgres.snapshot()) == 1


async def test_a_savepoint_of_the_users_saves_an_aborted_transaction(
    postgres: PostgresStore, conn: Connection
) -> None:
    async with conn.transaction():
        await conn.execute("SAVEPOINT mine")
        with pytest.raises(asyncpg.DivisionByZeroError):
            await conn.execute("SELECT 1 / 0")
        with pytest.raises(DatabaseError, match="roll it back"):
            await enqueue(postgres, conn)
        await conn.execute("ROLLBACK TO mine")
        await enqueue(postgres, conn, 3)

    assert len(await postgres.snapshot()) == 3


@pytest.mark.parametrize("isolation", ["repeatable_read", "serializable"])
async def test_a_strict_transaction_sees_its_own_jobs_and_commits_them(
    postgres: PostgresStore, conn: Connection, isolation: Any
) -> None:
    async with conn.transaction(isolation=isolation):
        assert await conn.fetchval("SELECT count(*) FROM oban_jobs") == 0
        await postgres.insert()
        await enqueue(postgres, conn, 3)
        assert await conn.fetchval("SELECT count(*) FROM oban_jobs") == 3

    assert len(await postgres.snapshot()) == 4


@pytest.mark.parametrize("kind", ["json", "jsonb", "text", "timestamp", "float8", "numeric"])
async def test_codecs_of_the_users_neither_reach_our_rows_nor_are_lost(
    postgres: PostgresStore, conn: Connection, kind: str
) -> None:
    def bracketed(text: str) -> str:
        return f"<{text}>"

    await conn.set_type_codec(
        kind, encoder=str, decoder=bracketed if kind != "text" else str, schema="pg_catalog"
    )
    job = new_job(args={"a": [1.5, "x"]}, tags=["t"], schedule_in=1.5)

    await postgres.connections.adopt(conn).run(postgres.engine.insert_jobs([job]))
    await postgres.connections.adopt(conn).run(
        postgres.engine.insert_jobs([new_job(), new_job(schedule_in=0.5)])
    )
    found = await postgres.connections.adopt(conn).run(postgres.engine.get_job(job.id or 0))

    assert found is not None
    assert (found.args, found.tags, found.state) == ({"a": [1.5, "x"]}, ["t"], "scheduled")
    assert found.scheduled_at == job.scheduled_at
    if kind != "text":
        value = await conn.fetchval(f"SELECT {LITERALS[kind]}::{kind}")
        assert value.startswith("<")


LITERALS = {"json": "'1'", "jsonb": "'1'", "timestamp": "'2020-01-01'", "float8": "'1'", "numeric": "'1'"}


async def test_a_cancelled_enqueue_leaves_the_users_transaction_usable(
    postgres: PostgresStore, conn: Connection
) -> None:
    holder = await postgres.raw_connection()
    await holder.execute("BEGIN; LOCK TABLE oban_jobs")
    async with conn.transaction():
        await conn.execute("INSERT INTO orders VALUES (1)")
        waiting = asyncio.create_task(enqueue(postgres, conn, 3))
        await eventually(lambda: _blocked(holder))

        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await conn.execute("INSERT INTO orders VALUES (2)")
    await holder.execute("ROLLBACK")

    assert await orders(postgres) == [1, 2]
    assert await postgres.snapshot() == {}


async def test_a_cancelled_enqueue_leaves_no_transaction_of_ours_behind(
    postgres: PostgresStore, conn: Connection
) -> None:
    holder = await postgres.raw_connection()
    await holder.execute("BEGIN; LOCK TABLE oban_jobs")
    waiting = asyncio.create_task(enqueue(postgres, conn, 1_001))
    await eventually(lambda: _blocked(holder))

    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await holder.execute("ROLLBACK")

    assert not conn.is_in_transaction()
    await enqueue(postgres, conn)
    assert len(await postgres.snapshot()) == 1


async def _blocked(holder: Connection) -> bool:
    return bool(
        await holder.fetch("SELECT 1 FROM pg_locks WHERE relation = 'oban_jobs'::regclass AND NOT granted")
    )


async def test_a_connection_of_another_event_loop_is_refused(
    postgres: PostgresStore, conn: Connection
) -> None:
    def elsewhere() -> None:
        asyncio.run(_enqueue_once(postgres, conn))

    with pytest.raises(DatabaseError, match=r"conn cannot be used: .*loop"):
        await asyncio.to_thread(elsewhere)

    assert await postgres.snapshot() == {}


async def _enqueue_once(store: PostgresStore, conn: Connection) -> None:
    await enqueue(store, conn)


def of_sqlite(store: PostgresStore) -> object:
    connection = sqlite3.connect(":memory:")
    store.stack.callback(connection.close)
    return connection


def of_nothing(store: PostgresStore) -> object:
    return store.url


def a_pool(store: PostgresStore) -> object:
    return asyncpg.create_pool(store.url)


@pytest.mark.parametrize(
    ("make", "kind"),
    [(of_sqlite, r"sqlite3\.Connection"), (of_nothing, r"builtins\.str"), (a_pool, r"asyncpg\.pool\.Pool")],
)
async def test_a_connection_of_another_kind_is_refused_by_its_kind(
    postgres: PostgresStore, make: Callable[[PostgresStore], object], kind: str
) -> None:
    with pytest.raises(
        UnsupportedConnection, match=rf"expected conn to be an asyncpg connection, got: {kind}"
    ):
        postgres.connections.adopt(make(postgres))


async def test_an_instance_on_sqlite_refuses_it(conn: Connection, tmp_path: Path) -> None:
    connections = connections_for(parse_url(f"sqlite:///{tmp_path / 'jobs.db'}"))

    with pytest.raises(
        UnsupportedConnection, match=r"expected conn to be a sqlite3\.Connection, got: asyncpg\."
    ):
        connections.adopt(conn)
