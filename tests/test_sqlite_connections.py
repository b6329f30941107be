"""The writer thread: group commit, failures that leave others alone, what bad files get, noticing other connections."""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from staffa.connections import connections_for, parse_url, sqlite_driver, sqlite_writer
from staffa.connections.sqlite import AdoptedSQLite, SQLiteConnections
from staffa.errors import (
    DatabaseError,
    DatabaseUnavailable,
    InvalidOption,
    SchemaError,
    UnsupportedConnection,
)
from staffa.steps import Statement, Steps, atomic
from tests.support import eventually

TABLE = "CREATE TABLE things (id integer PRIMARY KEY, name text NOT NULL)"


def one(text: str, **parameters: object) -> Steps[list[tuple[object, ...]]]:
    return (yield Statement(text, parameters))


def put(name: str | None) -> Steps[int]:
    yield Statement("INSERT INTO things (name) VALUES (:name)", {"name": name})
    rows = yield Statement("SELECT last_insert_rowid()")
    return int(rows[0][0])


def put_twice(name: str, second: str | None) -> Steps[None]:
    yield from put(name)
    yield from put(second)


def put_twice_forgiving(name: str) -> Steps[str]:
    yield from put(name)
    try:
        yield from atomic(lambda: put_twice("inner", None))
    except DatabaseError:
        yield from put("after the failure")
        return "recovered"
    return "unexpected"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "things.db"


@pytest.fixture
async def connections(path: Path) -> AsyncIterator[SQLiteConnections]:
    opened = connections_for(parse_url(f"sqlite:///{path}?busy_timeout=0.1"))
    assert isinstance(opened, SQLiteConnections)
    await opened.run(one(TABLE))
    yield opened
    await opened.close()


async def names(connections: SQLiteConnections) -> list[object]:
    return [row[0] for row in await connections.run(one("SELECT name FROM things ORDER BY id"))]


async def test_many_verbs_share_few_commits_and_a_failing_one_leaves_nothing(
    connections: SQLiteConnections, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits: list[None] = []
    real = sqlite_driver.commit

    def counting(connection: sqlite3.Connection) -> None:
        commits.append(None)
        real(connection)

    monkeypatch.setattr(sqlite_writer, "commit", counting)

    go_on, blocker = await _hold(connections)
    verbs = [connections.run(put(f"thing {n}")) for n in range(250)]
    bad = connections.run(put_twice("half done", None))
    answers = asyncio.gather(
        *verbs, bad, *(connections.run(put(f"more {n}")) for n in range(250)), return_exceptions=True
    )
    await asyncio.sleep(0)
    go_on.set()
    await blocker
    results = await answers
    grouped = len(commits)

    failed = [result for result in results if isinstance(result, BaseException)]
    assert len(failed) == 1
    assert isinstance(failed[0], DatabaseError)
    assert "NOT NULL" in str(failed[0])
    assert len(await names(connections)) == 500
    assert "half done" not in await names(connections)
    assert grouped <= 1 + 501 // 64 + 1


async def test_an_error_is_thrown_into_the_steps_which_may_recover(connections: SQLiteConnections) -> None:
    assert await connections.run(put_twice_forgiving("outer")) == "recovered"

    assert await names(connections) == ["outer", "after the failure"]


async def test_a_commit_that_fails_fails_every_verb_of_the_group(
    connections: SQLiteConnections, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(connection: sqlite3.Connection) -> None:
        raise DatabaseUnavailable("the disk is full")

    monkeypatch.setattr(sqlite_writer, "commit", failing)
    results = await asyncio.gather(*(connections.run(put(str(n))) for n in range(5)), return_exceptions=True)
    monkeypatch.undo()

    assert [type(result) for result in results] == [DatabaseUnavailable] * 5  # and nothing was stored
    assert await names(connections) == []


async def test_a_full_disk_is_unavailable_and_work_goes_on_when_there_is_room_again__case_44(
    connections: SQLiteConnections,
) -> None:
    pages = (await connections.run(one("PRAGMA page_count")))[0][0]
    await connections.run(one(f"PRAGMA max_page_count = {pages}"))

    with pytest.raises(DatabaseUnavailable, match="full"):
        await asyncio.gather(*(connections.run(put("x" * 1000)) for _ in range(50)))
    await connections.run(one("PRAGMA max_page_count = 1000000"))
    await connections.run(put("after"))

    assert (await names(connections))[-1] == "after"


async def test_reads_are_not_held_up_by_another_writer(connections: SQLiteConnections, path: Path) -> None:
    other = sqlite3.connect(path, timeout=60, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    assert await names(connections) == []

    other.execute("ROLLBACK")
    other.close()


async def test_a_locked_file_is_unavailable_with_a_sentence_that_says_what_to_do(
    connections: SQLiteConnections, path: Path
) -> None:
    other = sqlite3.connect(path, timeout=60, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    with pytest.raises(
        DatabaseUnavailable,
        match=r"is locked: another connection has been writing for too long .*busy_timeout",
    ):
        await connections.run(put("x"))

    other.execute("ROLLBACK")
    other.close()
    await connections.run(put("y"))


async def test_a_corrupt_file_is_named_with_what_to_do(path: Path) -> None:
    path.write_bytes(b"this is not a database, although it is long enough to look like one" * 40)
    connections = connections_for(parse_url(f"sqlite:///{path}"))

    with pytest.raises(DatabaseError, match="is not a sound SQLite database"):
        await connections.run(one("SELECT 1 FROM sqlite_master"))

    await connections.close()


async def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    connections = connections_for(parse_url(f"sqlite:///{tmp_path}/nowhere/jobs.db"))

    with pytest.raises(DatabaseError, match=r"there is no folder .*nowhere; make it first"):
        await connections.run(one("SELECT 1"))

    await connections.close()


async def test_a_read_only_database_can_be_read_and_says_what_to_do_when_written(
    connections: SQLiteConnections,
) -> None:
    await connections.run(put("x"))
    await connections.run(one("PRAGMA query_only = 1"))

    assert await names(connections) == ["x"]
    with pytest.raises(DatabaseError, match=r"is read-only .*make the file and its folder writable"):
        await connections.run(put("y"))


async def test_a_missing_table_of_ours_says_which_command_to_run(connections: SQLiteConnections) -> None:
    with pytest.raises(SchemaError, match=r"lacks a table of Staffa .*staffa migrate up"):
        await connections.run(one("SELECT 1 FROM oban_jobs"))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite://", "to name a file"),
        ("sqlite:///:memory:", "nobody can share a database in memory"),
        ("sqlite:///x.db?sinchronous=off", "did you mean 'synchronous'"),
        ("sqlite:///x.db?synchronous=off", "expected synchronous to be full or normal, got: 'off'"),
        ("sqlite:///x.db?busy_timeout=soon", "expected busy_timeout to be seconds from 0 to 3600"),
    ],
)
async def test_a_bad_url_is_refused_with_what_was_expected(url: str, message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        connections_for(parse_url(url))


async def test_a_commit_of_another_connection_is_noticed_and_our_own_is_not(
    connections: SQLiteConnections, path: Path
) -> None:
    noticed: list[None] = []
    unwatch = connections.watch(lambda: noticed.append(None))
    await connections.run(put("our own"))
    await connections.run(put("our own"))
    assert noticed == []

    other = sqlite3.connect(path, timeout=60)
    other.execute("INSERT INTO things (name) VALUES ('foreign')")
    other.commit()
    await eventually(lambda: noticed)

    unwatch()
    other.close()


async def test_instances_of_one_process_share_the_thread_and_the_last_one_closes_it(path: Path) -> None:
    url = parse_url(f"sqlite:///{path}")
    one_of_them, other = SQLiteConnections(url), SQLiteConnections(url)
    await one_of_them.run(one(TABLE))
    await other.run(put("x"))
    assert one_of_them._opened() is other._opened()

    await one_of_them.close()
    await other.run(put("y"))
    await other.close()

    assert one_of_them.topic not in sqlite_writer._files


def test_answers_for_a_closed_event_loop_are_dropped(path: Path) -> None:
    connections = SQLiteConnections(parse_url(f"sqlite:///{path}"))

    started, go_on = threading.Event(), threading.Event()

    def held_up() -> Steps[None]:
        started.set()
        go_on.wait(120)
        yield Statement(TABLE)

    async def leave_early() -> None:
        asyncio.ensure_future(connections.run(held_up()))  # noqa: RUF006  # abandoned on purpose
        await asyncio.to_thread(started.wait, 60)

    asyncio.run(leave_early())
    go_on.set()

    async def come_back() -> None:
        await eventually(lambda: _has_table(path))
        await connections.run(put("x"))
        await connections.close()

    asyncio.run(come_back())


def _has_table(path: Path) -> bool:
    connection = sqlite3.connect(path, timeout=60)
    try:
        return len(connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'things'").fetchall()) == 1
    finally:
        connection.close()


async def test_a_users_connection_to_this_file_is_adopted_by_whatever_name_it_was_opened(
    connections: SQLiteConnections, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.with_name("link.db").symlink_to(path)
    monkeypatch.chdir(path.parent)

    for name in (str(path), "things.db", "./link.db", f"file:{path}?mode=rw"):
        mine = sqlite3.connect(name, uri=name.startswith("file:"))
        mine.row_factory, mine.text_factory = sqlite3.Row, bytes
        await connections.adopt(mine).run(put(name))
        assert mine.text_factory is bytes
        mine.commit()
        mine.close()

    assert len(await names(connections)) == 4


@pytest.mark.parametrize("other", ["other.db", ":memory:"])
async def test_a_users_connection_to_another_database_is_refused(
    connections: SQLiteConnections, path: Path, other: str
) -> None:
    mine = sqlite3.connect(other if other == ":memory:" else path.with_name(other))
    mine.execute(f"ATTACH '{path}' AS jobs")  # not the one that a transaction is about

    with pytest.raises(
        UnsupportedConnection,
        match=r"conn to be a connection to .*things\.db.*, got: one to .*(other\.db|memory)",
    ):
        connections.adopt(mine)

    mine.close()


async def test_the_log_becomes_small_again_after_a_long_read(
    connections: SQLiteConnections, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = path.with_name("things.db-wal")
    monkeypatch.setattr(sqlite_driver, "LOG_LIMIT", 64 * 1024)
    connections._opened()._handle.drop()  # whoever opens from now on has the limit
    reader = sqlite3.connect(path, timeout=60, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM things").fetchall()
    for _ in range(40):
        await connections.run(put("x" * 100_000))
    assert log.stat().st_size > 4_000_000

    reader.execute("ROLLBACK")
    reader.close()

    async def small() -> bool:
        await connections.run(put("x"))
        return log.stat().st_size < 1_000_000

    await eventually(small)


NOT_UTF8 = "CAST(x'7b22ff227d' AS TEXT)"


async def test_text_that_is_not_utf8_is_read_with_a_mark_in_place_of_the_bad_bytes(
    connections: SQLiteConnections,
) -> None:
    assert await connections.run(one(f"SELECT {NOT_UTF8}")) == [('{"\ufffd"}',)]


async def test_a_read_that_fails_half_way_leaves_a_users_transaction_usable(path: Path) -> None:
    connection = sqlite3.connect(path, timeout=60, isolation_level=None)
    connection.execute(TABLE)
    connection.execute("BEGIN")

    def verb() -> Steps[None]:
        yield from put("undone")
        yield Statement(f"SELECT {NOT_UTF8} UNION ALL SELECT {NOT_UTF8}")

    with pytest.raises(DatabaseError, match="decode"):
        await AdoptedSQLite(connection).run(atomic(verb))

    connection.execute("COMMIT")
    assert connection.execute("SELECT * FROM things").fetchall() == []
    connection.close()


async def test_a_verb_that_cannot_be_undone_fails_all_writers_of_its_group_and_nobody_hangs(
    connections: SQLiteConnections, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = sqlite_driver.execute

    def stubborn(connection: sqlite3.Connection, statement: Statement) -> Any:
        if statement.text.startswith("ROLLBACK TO"):
            raise DatabaseError("SQL statements in progress")
        return real(connection, statement)

    monkeypatch.setattr(sqlite_writer, "execute", stubborn)
    async with asyncio.timeout(60):
        go_on, blocker = await _hold(connections)
        requests = [
            connections.run(steps)
            for steps in (one("SELECT 1"), put("before"), put_twice("half", None), put("later"))
        ]
        results = asyncio.gather(*requests, return_exceptions=True)
        await asyncio.sleep(0)
        go_on.set()
        await blocker
        answers = await results
    monkeypatch.undo()

    assert answers[0] == [(1,)]
    assert "in progress" in str(answers[1])
    assert "NOT NULL" in str(answers[2])
    assert "in progress" in str(answers[3])
    await connections.run(put("afterwards"))
    assert await names(connections) == ["afterwards"]


async def test_who_waits_in_one_group_for_a_locked_file_waits_once_and_reads_are_answered(
    connections: SQLiteConnections, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begins: list[None] = []
    real = sqlite_driver.execute

    def counting(connection: sqlite3.Connection, statement: Statement) -> Any:
        if statement is sqlite_driver.BEGIN:
            begins.append(None)
        return real(connection, statement)

    monkeypatch.setattr(sqlite_writer, "execute", counting)
    other = sqlite3.connect(path, timeout=60, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    go_on, blocker = await _hold(connections)
    results = asyncio.gather(
        *(connections.run(put(str(n))) for n in range(30)),
        connections.run(one("SELECT 1")),
        return_exceptions=True,
    )
    await asyncio.sleep(0)
    go_on.set()
    answers = await results

    assert len(begins) == 1
    assert [type(answer) for answer in answers[:-1]] == [DatabaseUnavailable] * 30
    assert answers[-1] == [(1,)]
    await blocker
    other.close()


async def test_a_verb_that_was_given_up_before_its_turn_is_not_carried_out(
    connections: SQLiteConnections,
) -> None:
    go_on, blocker = await _hold(connections)

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await connections.run(put("given up"))
    go_on.set()
    await blocker
    await connections.run(put("wanted"))

    assert await names(connections) == ["wanted"]


def test_threads_that_open_at_once_get_the_same_writer(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connections = SQLiteConnections(parse_url(f"sqlite:///{path}"))
    real, both = sqlite_writer.acquire, threading.Barrier(8)

    def slow(settings: sqlite_driver.Settings) -> sqlite_writer.WriterThread:
        threading.Event().wait(0.01)  # room for the others to come in between
        return real(settings)

    monkeypatch.setattr("staffa.connections.sqlite.acquire", slow)
    opened: list[sqlite_writer.WriterThread] = []

    def use() -> None:
        both.wait()
        opened.append(connections._opened())

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(set(opened)) == 1
    assert opened[0].holders == 1
    connections.release()


@pytest.mark.parametrize("replaced", [False, True])
async def test_a_file_deleted_or_replaced_while_open_is_said_once_and_the_new_one_is_used(
    connections: SQLiteConnections, path: Path, monkeypatch: pytest.MonkeyPatch, replaced: bool
) -> None:
    dedicated = await connections.dedicated()
    await dedicated.run(put("old"))
    monkeypatch.setattr(connections._opened()._handle, "_look_every", 0)
    if replaced:
        other = sqlite3.connect(path.with_name("new.db"))
        other.execute(TABLE)
        other.close()
        path.with_name("new.db").rename(path)
        for suffix in ("-wal", "-shm"):  # SQLite would take the old log for the new file's
            path.with_name(path.name + suffix).unlink()
    else:
        path.unlink()

    for runner in (connections, dedicated):
        with pytest.raises(DatabaseUnavailable, match="was deleted or replaced while it was open"):
            await runner.run(put("lost"))
    if not replaced:
        await connections.run(one(TABLE))
    await connections.run(put("new"))
    await dedicated.run(put("newer"))

    assert await names(connections) == ["new", "newer"]
    await dedicated.close()


async def _hold(connections: SQLiteConnections) -> tuple[threading.Event, "asyncio.Future[None]"]:
    """Keep the writer thread in a group of its own, so that what is asked for meanwhile becomes the next."""
    started, go_on = threading.Event(), threading.Event()

    def steps() -> Steps[None]:
        started.set()
        go_on.wait(120)
        yield Statement("SELECT 1")

    held = asyncio.ensure_future(connections.run(steps()))
    await asyncio.to_thread(started.wait, 60)
    return go_on, held
