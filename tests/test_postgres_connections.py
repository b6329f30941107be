"""Connections to PostgreSQL: what a URL names and hides, what of an event loop is kept, and how connections end."""

import asyncio
import gc
import logging
import warnings
import weakref
from collections.abc import Generator
from pathlib import Path

import asyncpg
import pytest

from staffa import Staffa
from staffa.connections import parse_url
from staffa.connections.base import URL
from staffa.connections.parameters import numbered
from staffa.connections.postgres import PostgresConnections
from staffa.connections.postgres_driver import translated
from staffa.errors import DatabaseError, DatabaseUnavailable, InvalidOption
from staffa.steps import Rows, Statement, Steps
from tests.support import PostgresStore, ServerMissing, eventually
from tests.support.servers import server_needed

NAME = "staffa test connections"


@pytest.fixture
def url(tmp_path: Path) -> Generator[str, None, None]:
    """A database, for tests that have event loops of their own."""

    async def prepared() -> str:
        context = PostgresStore.fresh(tmp_path)
        try:
            store = await context.__aenter__()
        except ServerMissing as missing:
            pytest.skip(str(missing))
        await context.__aexit__(None, None, None)
        return store.url

    with server_needed():
        url = asyncio.run(prepared())
    yield url
    assert asyncio.run(none_left(url))


async def opened(url: str) -> int:
    connection = await asyncpg.connect(url)
    try:
        return int(
            await connection.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1", NAME
            )
        )
    finally:
        await connection.close()


async def none_left(url: str) -> bool:
    async def none() -> bool:
        return await opened(url) == 0

    await eventually(none)
    return True


def connections(url: str, options: str = "") -> PostgresConnections:
    return PostgresConnections(parse_url(f"{url}?application_name={NAME.replace(' ', '+')}{options}"))


def sql(text: str) -> Steps[Rows]:
    return (yield Statement(text, {}))


# URLs.


def topic(url: str) -> str:
    return PostgresConnections(parse_url(url)).topic


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("postgresql://u@?host=h&database=a", "postgresql://u@?host=h&database=b"),
        ("postgresql://u@?host=h&dbname=a", "postgresql://u@?host=h&dbname=b"),
        ("postgresql://u@/a?host=g", "postgresql://u@/a?host=h"),
        ("postgresql://u@/a?host=h&port=5432", "postgresql://u@/a?host=h&port=5433"),
        ("postgresql://h:5432/a", "postgresql://h:5433/a"),
        ("postgresql://h/a", "postgresql://h/b"),
        ("postgresql://u@h", "postgresql://v@h"),
        ("postgresql:///?service=a", "postgresql:///?service=b"),
    ],
)
def test_two_databases_have_two_topics_wherever_the_url_names_them(one: str, other: str) -> None:
    assert topic(one) != topic(other)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:secret@h/a",
        "postgresql://v@h:5432/a?pool_size=3",
        "postgresql://u@?host=h&database=a&password=secret",
        "postgresql:///a?host=h&port=5432",
    ],
)
def test_a_database_has_one_topic_without_user_and_password(url: str) -> None:
    assert topic(url) == topic("postgres://h/a")
    assert "secret" not in topic(url)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:secret\nline@h/d",
        "postgresql://u:line\nsecret@h/d",
        "postgres:secret@h/d",
        "postgresql:/u:secret@h/d",
        "secret@h/d",
        "postgresql://u:a/secret@more?b@h/d",
        "postgresql://u:a/s@secret?b@h/d",
        "postgresql://u:a/s@b?secret@h/d",
        "postgresql://u:a#secret@b@h/d",
        "postgresql://u@b:secret@h/d",
        "postgresql://u:a?b=secret@h/d",
        "postgresql:///d?password=a@secret",
    ],
)
def test_no_part_of_a_password_is_shown(url: str) -> None:
    assert "secret" not in URL(url, "", "", {}).safe


@pytest.mark.parametrize("url", ["postgres:secret@h/d", "postgresql:/u:secret@h/d", "secret@h/d"])
def test_what_is_no_url_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(InvalidOption) as caught:
        parse_url(url)

    assert "secret" not in str(caught.value)


def test_a_broken_url_does_not_show_its_password() -> None:
    with pytest.raises(InvalidOption) as caught:
        parse_url("postgresql://u:secret\N{CARE OF}@h/d")

    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


# Statements and errors.


def test_parameters_are_not_looked_for_in_names() -> None:
    text = 'SELECT :a FROM "it\'s".t JOIN "a :b".t JOIN "c"" :d".t WHERE x = \':e\' AND y = :f'

    assert numbered(text) == (text.replace(":a ", "$1 ").replace(":f", "$2"), ("a", "f"))


@pytest.mark.parametrize(
    "error", [OSError("gone"), ConnectionResetError("gone"), asyncpg.InterfaceError("gone")]
)
def test_a_connection_that_was_lost_is_told_as_lost(error: Exception) -> None:
    ours = translated(error, "here")

    assert isinstance(ours, DatabaseUnavailable)
    assert "the connection was lost: gone" in str(ours)


@pytest.mark.parametrize("error", [KeyError("now"), TypeError("now"), RuntimeError("now")])
def test_what_no_server_did_is_not_told_as_a_lost_connection(error: Exception) -> None:
    ours = translated(error, "here")

    assert type(ours) is DatabaseError
    assert type(error).__name__ in str(ours)
    assert "lost" not in str(ours)


def test_a_server_that_takes_no_writes_may_have_been_told_so() -> None:
    error = asyncpg.ReadOnlySQLTransactionError("cannot execute INSERT in a read-only transaction")

    assert "default_transaction_read_only" in str(translated(error, "here"))


# Event loops.


def test_nothing_of_an_event_loop_that_ended_is_kept(url: str) -> None:
    ours = connections(url)

    async def select() -> "weakref.ref[asyncio.AbstractEventLoop]":
        await ours.run(sql("SELECT 1"))
        return weakref.ref(asyncio.get_running_loop())

    loops = [asyncio.run(select()) for _ in range(3)]
    gc.collect()

    assert [loop() for loop in loops] == [None] * 3
    assert len(ours._pools) == 0


def test_a_loop_that_was_closed_by_hand_is_forgotten_with_its_connections(url: str) -> None:
    ours = connections(url)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        for _ in range(5):
            in_a_loop_that_is_closed_by_hand(ours)
            assert len(ours._pools) == 1
        asyncio.run(ours.run(sql("SELECT 1")))
        gc.collect()

        assert len(ours._pools) == 0
        assert asyncio.run(none_left(url))


def in_a_loop_that_is_closed_by_hand(ours: PostgresConnections) -> None:
    loop = asyncio.new_event_loop()
    loop.run_until_complete(ours.run(sql("SELECT 1")))
    loop.close()


# Goodbyes.


def farewells() -> list[str]:
    return [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("staffa")]


def test_a_statement_that_is_broken_off_leaves_no_noise_and_no_task(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    ours = connections(url, "&pool_size=2")

    async def break_off() -> None:
        for _ in range(20):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(ours.run(sql("SELECT pg_sleep(60)")), 0.01)
        for _ in range(5):
            with pytest.raises(DatabaseUnavailable, match="did not answer in time"):
                await impatient.run(sql("SELECT pg_sleep(60)"))
        await impatient.close()
        assert not impatient._pools
        await ours.run(sql("SELECT 1"))
        await eventually(lambda: not farewells())
        assert await opened(url) <= 2
        await ours.close()
        assert farewells() == []

    impatient = connections(url, "&command_timeout=0.01&connect_timeout=30")
    with caplog.at_level(logging.WARNING):
        asyncio.run(break_off())
        gc.collect()

    assert caplog.messages == []


def test_a_connection_that_nobody_waits_for_any_more_is_the_next_ones(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    ours = connections(url)

    async def break_off() -> None:
        for _ in range(10):
            opening = asyncio.create_task(ours.run(sql("SELECT 1")))
            await eventually(lambda: any(pool.open for pool in ours._pools.values()))
            opening.cancel()
            await asyncio.gather(opening, return_exceptions=True)
        [pool] = ours._pools.values()
        await eventually(lambda: not farewells() and pool._opening == 0)
        await eventually(lambda: pool.open == len(pool._idle) > 0)
        await ours.close()
        assert farewells() == []

    with caplog.at_level(logging.WARNING):
        asyncio.run(break_off())
        gc.collect()

    assert caplog.messages == []


def test_a_loop_that_ends_while_a_statement_is_broken_off_closes_all_the_same(url: str) -> None:
    """Then nobody is left to cancel it: the server runs it to its end, and sees only then that we are gone."""
    ours = connections(url)

    async def break_off() -> None:
        await ours.run(sql("SELECT 1"))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ours.run(sql("SELECT pg_sleep(2)")), 0.01)

    asyncio.run(break_off())

    assert asyncio.run(none_left(url))


def test_a_close_waits_for_the_connections_that_are_leaving(url: str) -> None:
    ours = connections(url)

    async def break_off() -> None:
        await ours.run(sql("SELECT 1"))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ours.run(sql("SELECT pg_sleep(60)")), 0.01)
        await ours.close()
        assert farewells() == []

    asyncio.run(break_off())


# Prefixes.


@pytest.mark.parametrize(
    "prefix", ["x" * 64, "ü" * 32, "{jobs}", "a {now} b", "a}", "a\nb", "a\x7fb", "\x00"]
)
def test_a_prefix_that_the_server_would_not_take_as_it_is_is_refused(prefix: str) -> None:
    with pytest.raises(InvalidOption, match="expected prefix to be") as caught:
        Staffa("postgresql://h/d", prefix=prefix)

    assert caught.value.option == "prefix"


@pytest.mark.parametrize("prefix", ["x" * 63, "it's", "a :b", 'a"b', "Ünï", "%s", "a--b"])
def test_other_prefixes_are_taken(prefix: str) -> None:
    assert Staffa("postgresql://h/d", prefix=prefix).config.prefix == prefix


async def test_a_heartbeats_connection_waits_no_longer_than_its_lease_allows(url: str) -> None:
    connections = PostgresConnections(parse_url(f"{url}?command_timeout=300"))
    dedicated = await connections.dedicated()
    try:
        assert dedicated._pool.timeout == 5.0
        assert connections._pool().timeout == 300.0
    finally:
        await dedicated.close()
        await connections.close()
