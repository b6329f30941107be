"""The tests' own machinery keeps its word: private servers, and a network that can be spoiled."""

import os
import socket
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from staffa.jobs import JobState
from tests.support import eventually
from tests.support.postgres_store import PostgresStore, drop_stale_databases
from tests.support.proxy import Proxy
from tests.support.servers import (
    POSTGRES_URL,
    PostgresServer,
    query,
    running_postgres,
    server_needed,
    with_database,
)

CUT = (asyncpg.PostgresConnectionError, asyncpg.InterfaceError, asyncpg.AdminShutdownError, OSError)


@pytest.fixture
def server(tmp_path: Path) -> Generator[PostgresServer, None, None]:
    with server_needed():
        server = PostgresServer.fresh(tmp_path)
    with server:
        yield server


@pytest.fixture
async def url() -> str:
    with server_needed():
        return await running_postgres()


@pytest.fixture
def proxy(url: str) -> Generator[Proxy, None, None]:
    with Proxy(url) as proxy:
        yield proxy


async def connect(proxy: Proxy) -> "asyncpg.Connection[asyncpg.Record]":
    return await asyncpg.connect(proxy.url, timeout=30)


# Private servers.


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_what_was_committed_survives_a_stop_and_a_crash_of_a_private_server(
    server: PostgresServer, mode: str
) -> None:
    server.query("CREATE TABLE kept AS SELECT 1 AS n")
    url = server.url

    server.restart("fast" if mode == "fast" else "immediate")

    assert server.url == url
    assert server.query("SELECT n FROM kept") == [(1,)]


async def test_a_stopped_server_is_gone_with_all_its_clients(server: PostgresServer) -> None:
    connection = await asyncpg.connect(server.url)

    server.stop()

    assert not server.running
    with pytest.raises(CUT):
        await connection.fetch("SELECT 1")
    with pytest.raises(OSError, match=r"refused|Connect call failed"):
        await asyncpg.connect(server.url)
    connection.terminate()


async def test_the_backends_of_one_application_can_be_ended(server: PostgresServer) -> None:
    ours, other = [
        await asyncpg.connect(server.url, server_settings={"application_name": name})
        for name in ("ours", "other")
    ]

    assert server.backends("ours") == [ours.get_server_pid()]
    assert len(server.backends()) == 2
    assert server.terminate("ours") == 1

    await eventually(lambda: not server.backends("ours"))
    with pytest.raises(CUT):
        await ours.fetch("SELECT 1")
    assert await other.fetchval("SELECT 1") == 1
    for connection in (ours, other):
        connection.terminate()


def test_nothing_is_left_of_a_private_server(tmp_path: Path) -> None:
    with server_needed():
        server = PostgresServer.fresh(tmp_path)

    with server:
        folder = server.folder

    assert not server.running
    assert not folder.exists()


async def test_two_private_servers_live_side_by_side(server: PostgresServer, tmp_path: Path) -> None:
    async with PostgresServer.fresh(tmp_path) as other:
        assert other.port != server.port
        server.stop("immediate")
        assert other.query("SELECT 1") == [(1,)]


# The network.


async def test_a_proxy_carries_everything_in_both_directions(proxy: Proxy) -> None:
    connection = await connect(proxy)
    long = "x" * 3_000_000

    assert await connection.fetchval("SELECT $1::text", long) == long
    assert (proxy.made, proxy.open) == (1, 1)

    await connection.close()
    await eventually(lambda: proxy.open == 0)
    assert proxy.made == 1


async def test_an_error_of_the_server_arrives(proxy: Proxy) -> None:
    connection = await connect(proxy)

    with pytest.raises(asyncpg.DivisionByZeroError):
        await connection.fetch("SELECT 1 / 0")

    assert await connection.fetchval("SELECT 1") == 1
    await connection.close()


async def test_a_cut_ends_every_connection_and_lets_new_ones_in(proxy: Proxy) -> None:
    connections = [await connect(proxy) for _ in range(3)]

    assert proxy.cut() == 3

    for connection in connections:
        with pytest.raises(CUT):
            await connection.fetch("SELECT 1")
        connection.terminate()
    await eventually(lambda: proxy.open == 0)
    connection = await connect(proxy)
    assert await connection.fetchval("SELECT 1") == 1
    await connection.close()


async def test_a_refusing_proxy_keeps_what_is_open_and_lets_nobody_in_until_it_accepts(proxy: Proxy) -> None:
    connection = await connect(proxy)

    proxy.refuse()

    with pytest.raises(ConnectionRefusedError):
        await connect(proxy)
    assert await connection.fetchval("SELECT 1") == 1
    proxy.accept()
    await (await connect(proxy)).close()
    await connection.close()


async def test_in_a_blackhole_a_statement_never_reaches_the_server_and_nobody_is_told(
    proxy: Proxy, url: str
) -> None:
    connection = await connect(proxy)
    await connection.execute("SET application_name = 'staffa-blackhole'")
    backend = connection.get_server_pid()

    proxy.blackhole()

    with pytest.raises(TimeoutError):
        await connection.fetch("SELECT 'lost'", timeout=0.2)
    with pytest.raises(TimeoutError):
        await asyncpg.connect(proxy.url, timeout=0.2)
    connection.terminate()
    direct = await asyncpg.connect(url)
    asked = "SELECT query FROM pg_stat_activity WHERE pid = $1 AND application_name = 'staffa-blackhole'"
    assert "lost" not in await direct.fetchval(asked, backend)
    await direct.close()


async def test_after_a_blackhole_new_connections_work_and_the_old_ones_stay_dead(proxy: Proxy) -> None:
    old = await connect(proxy)
    proxy.blackhole()
    proxy.restore()

    new = await connect(proxy)

    assert await new.fetchval("SELECT 1") == 1
    with pytest.raises(TimeoutError):
        await old.fetch("SELECT 1", timeout=0.2)
    old.terminate()
    await new.close()


@pytest.mark.parametrize("cache", [0, 100], ids=["no-cache", "cache"])
@pytest.mark.parametrize("known", [False, True], ids=["new", "prepared"])
async def test_a_statement_whose_answer_is_lost_was_carried_out_once(
    proxy: Proxy, url: str, cache: int, known: bool
) -> None:
    direct = await asyncpg.connect(url)
    table = f"staffa_lost_{os.getpid()}"
    await direct.execute(f"CREATE TABLE {table} (n integer)")
    connection = await asyncpg.connect(proxy.url, statement_cache_size=cache)
    insert = f"INSERT INTO {table} VALUES ($1) RETURNING n"
    if known:
        await connection.fetch(insert, 0)

    proxy.lose_answer_to(f"INSERT INTO {table}")
    assert await connection.fetchval("SELECT 1") == 1
    with pytest.raises(CUT):
        await connection.fetch(insert, 1)

    assert proxy.lost == 1
    connection.terminate()
    rows = await direct.fetch(f"SELECT n FROM {table} ORDER BY n")
    assert [row[0] for row in rows] == ([0, 1] if known else [1])
    again = await connect(proxy)
    assert await again.fetchval(insert, 2) == 2
    await direct.execute(f"DROP TABLE {table}")
    await again.close()
    await direct.close()


async def test_a_commit_whose_answer_is_lost_was_carried_out(proxy: Proxy, url: str) -> None:
    direct = await asyncpg.connect(url)
    table = f"staffa_commit_{os.getpid()}"
    await direct.execute(f"CREATE TABLE {table} (n integer)")
    connection = await connect(proxy)
    proxy.lose_answer_to("COMMIT")

    with pytest.raises(CUT):
        async with connection.transaction():
            await connection.execute(f"INSERT INTO {table} VALUES (1)")

    assert await direct.fetchval(f"SELECT count(*) FROM {table}") == 1
    connection.terminate()
    await direct.execute(f"DROP TABLE {table}")
    await direct.close()


async def test_a_proxy_whose_server_is_gone_closes_at_once(server: PostgresServer) -> None:
    with Proxy(server.url) as proxy:
        connection = await connect(proxy)
        server.stop()

        with pytest.raises(CUT):
            await connection.fetch("SELECT 1")
        with pytest.raises(CUT):
            await connect(proxy)
        connection.terminate()
        await eventually(lambda: proxy.open == 0)


def test_a_proxy_ends_with_connections_open_and_frees_its_port(url: str) -> None:
    with Proxy(url) as proxy:
        place = ("127.0.0.1", urlsplit(proxy.url).port or 0)
        client = socket.create_connection(place)
    client.close()

    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(place)


# The databases of the contract suite.

DAMAGE = (
    "INSERT INTO oban_jobs (worker) VALUES ('tests.Left')",
    "CREATE TABLE orders (id integer)",
    "CREATE TABLE another (id integer)",
    "CREATE SCHEMA tenant CREATE TABLE oban_jobs (id integer)",
    "DROP TABLE oban_jobs CASCADE",
    "DROP INDEX oban_jobs_due",
    "ALTER TABLE oban_jobs ALTER errors DROP DEFAULT, ALTER errors TYPE jsonb USING '[]'",
    "COMMENT ON TABLE oban_jobs IS '13'",
    "UPDATE staffa_migrations SET version = 4711",
    "DROP SCHEMA public CASCADE",
    "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE ''no''; END'",
    "ANALYZE oban_jobs",
)


@pytest.mark.parametrize("damage", DAMAGE)
async def test_a_store_is_fresh_whatever_the_test_before_has_done(
    url: str, tmp_path: Path, damage: str
) -> None:
    async with PostgresStore.fresh(tmp_path) as store:
        await query(store.url, damage)

    async with PostgresStore.fresh(tmp_path) as store:
        assert (await store.run(store.engine.migrations.status())).current
        assert await store.insert() == 1
        tables = "SELECT table_schema::text, count(*) FROM information_schema.tables WHERE table_name LIKE ANY($1) GROUP BY 1"
        assert await query(store.url, tables, ["oban%", "staffa%", "orders", "another"]) == [("public", 8)]
        assert await query(store.url, "SELECT obj_description('oban_jobs'::regclass)") == [("14",)]
        assert await query(store.url, "SELECT 1 FROM pg_stats WHERE tablename = 'oban_jobs'") == []


async def test_a_transaction_that_a_test_has_left_open_does_not_hold_up_the_next(
    url: str, tmp_path: Path
) -> None:
    async with PostgresStore.fresh(tmp_path) as store:
        left = await asyncpg.connect(store.url)
        await left.execute("BEGIN; LOCK TABLE oban_jobs")

    async with PostgresStore.fresh(tmp_path) as store:
        assert await store.insert() == 1

    left.terminate()


async def test_a_filled_table_has_every_state_and_no_statistics(url: str, tmp_path: Path) -> None:
    async with PostgresStore.fresh(tmp_path) as store:
        await store.fill(400)
        await store.analyze()

    async with PostgresStore.fresh(tmp_path) as store:
        await store.fill(400)

        counts = await store.sql("SELECT {text state}, count(*) FROM {jobs} GROUP BY state")
        assert sorted(counts) == sorted((state.value, 50) for state in JobState)
        assert await query(store.url, "SELECT 1 FROM pg_stats WHERE tablename = 'oban_jobs'") == []


async def test_databases_of_dead_processes_are_dropped_and_no_others(url: str) -> None:
    dead, other = "staffa_test_2147483647", f"staffa_testing_{os.getpid()}"
    for name in (dead, other):
        await query(url, f"DROP DATABASE IF EXISTS {name}")
        await query(url, f"CREATE DATABASE {name}")

    await drop_stale_databases(url)

    left = await query(url, "SELECT datname FROM pg_database WHERE datname = ANY($1)", [dead, other])
    assert left == [(other,)]
    await query(url, f"DROP DATABASE {other}")


def test_another_database_of_the_same_server_keeps_the_rest_of_the_url() -> None:
    for url, wanted in {
        "postgresql://me:it@host:1/one?ssl=off": "postgresql://me:it@host:1/other?ssl=off",
        "postgresql://host": "postgresql://host/other",
        "postgresql://host/?a=/b": "postgresql://host/other?a=/b",
    }.items():
        assert with_database(url, "other") == wanted


# The command that finds or starts servers.


def serve(*command: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "tests.support.serve", *command],
        env={**os.environ, **environment},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_command_is_told_the_server_and_its_exit_code_is_kept(server: PostgresServer) -> None:
    done = serve("sh", "-c", f"echo ${POSTGRES_URL}; exit 7", **{POSTGRES_URL: server.url})

    assert (done.returncode, done.stdout) == (7, f"{server.url}\n")


def test_a_server_that_is_set_but_gone_is_an_error(server: PostgresServer) -> None:
    server.stop()

    done = serve("echo", "went on", **{POSTGRES_URL: server.url})

    assert (done.returncode, done.stdout) == (1, "")
    assert f"{POSTGRES_URL} is set, but ConnectionRefusedError" in done.stderr
