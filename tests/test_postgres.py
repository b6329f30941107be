"""An instance on PostgreSQL: what nodes tell each other, and what of it reaches the database."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from staffa import Job, Staffa, current_job, job
from staffa.errors import InvalidJob
from staffa.heartbeat import Heartbeat
from staffa.steps import Rows, Statement, Steps
from tests.support import PostgresStore, ServerMissing, eventually
from tests.support.oban_tables import port
from tests.support.servers import server_needed

done: list[int] = []


@job(name="postgres.note")
async def note(number: int) -> None:
    done.append(number)


@job(name="postgres.wait")
async def wait() -> None:
    await asyncio.Event().wait()


@pytest.fixture
async def url(tmp_path: Path) -> AsyncGenerator[str, None]:
    """A fresh, migrated, empty database."""
    done.clear()
    with server_needed():
        context = PostgresStore.fresh(tmp_path)
        store = await context.__aenter__()
    try:
        yield store.url
    finally:
        await context.__aexit__(None, None, None)


Make = Callable[..., Staffa]


@pytest.fixture
async def make(url: str) -> AsyncGenerator[Make, None]:
    """Makes instances on that database, which are closed at the end."""
    async with AsyncExitStack() as stack:

        def made(options: str = "", **arguments: Any) -> Staffa:
            app = Staffa(f"{url}{options}", plugins=False, **arguments)
            stack.push_async_callback(app.close)
            return app

        yield made


@asynccontextmanager
async def hearing(url: str, channel: str) -> AsyncGenerator[list[str], None]:
    """What anybody hears on a channel of the database."""
    connection = await asyncpg.connect(url)
    heard: list[str] = []

    def hear(_connection: object, _pid: int, _channel: str, text: object) -> None:
        heard.append(str(text))

    await connection.add_listener(channel, hear)
    try:
        yield heard
    finally:
        await connection.close()


def sql(text: str, **parameters: Any) -> Steps[Rows]:
    return (yield Statement(text, parameters))


async def run(app: Staffa, text: str) -> Rows:
    return await app._runtime().run(sql(text))


async def test_a_job_goes_from_one_node_to_the_other(make: Make) -> None:
    web, worker = make(), make(queues={"default": 5}, stage_interval=3600)

    async with worker:
        await eventually(lambda: getattr(worker._runtime().notifier, "status", "") == "listening")
        await web.enqueue(note.new(7))
        await eventually(lambda: done == [7])

    assert await web.count_jobs() == {"default": {"completed": 1}}


async def test_a_batch_sends_one_message_a_queue(make: Make, url: str) -> None:
    app = make()

    async with hearing(url, "public.oban_insert") as heard:
        await app.enqueue_all([note.using(queue=("mail", "media")[n % 2]).new(n) for n in range(50)])
        await app.enqueue(note.using(queue="last").new(1))
        await eventually(lambda: '{"queue":"last"}' in heard)

    assert sorted(heard) == ['{"queue":"last"}', '{"queue":"mail"}', '{"queue":"media"}']


async def test_many_inserts_send_few_messages_and_none_is_forgotten(make: Make, url: str) -> None:
    web, worker = make(), make(queues={"default": 5}, stage_interval=3600)

    async with hearing(url, "public.oban_insert") as heard, worker:
        for number in range(200):
            await web.enqueue(note.new(number))
        await eventually(lambda: len(done) == 200)

    assert 0 < len(heard) < 200


async def test_scheduled_jobs_and_rolled_back_ones_send_nothing(make: Make, url: str) -> None:
    app = make()

    async with hearing(url, "public.oban_insert") as heard:
        connection = await asyncpg.connect(url)
        transaction = connection.transaction()
        await transaction.start()
        await app.enqueue(note.new(1), conn=connection)
        await transaction.rollback()
        await app.enqueue(note.using(schedule_in=60).new(2))
        async with connection.transaction():
            await app.enqueue(note.using(queue="mine").new(3), conn=connection)
        await connection.close()
        await eventually(lambda: heard)

    assert heard == ['{"queue":"mine"}']
    assert await app.count_jobs() == {"default": {"scheduled": 1}, "mine": {"available": 1}}


async def test_one_job_object_is_one_row_unless_its_transaction_was_rolled_back(make: Make, url: str) -> None:
    app = make()
    connection = await asyncpg.connect(url)
    job = note.new(1)
    transaction = connection.transaction()
    await transaction.start()
    await app.enqueue(job, conn=connection)
    with pytest.raises(InvalidJob, match="stored already"):
        await app.enqueue(job, conn=connection)
    await transaction.rollback()

    async with connection.transaction():
        await app.enqueue(job, conn=connection)  # as in a transaction that is tried again
    for conn in (connection, None):
        with pytest.raises(InvalidJob, match="stored already"):
            await app.enqueue(job, conn=conn)
        with pytest.raises(InvalidJob, match=r"jobs\[1\].*stored already"):
            await app.enqueue_all([note.new(2), job], conn=conn)
    await connection.close()

    assert await app.count_jobs() == {"default": {"available": 1}}


async def test_with_the_switch_off_nothing_is_sent_and_jobs_are_found_all_the_same(
    make: Make, url: str
) -> None:
    web, worker = make(notify=False), make(notify=False, queues={"default": 5}, stage_interval=0.05)

    async with hearing(url, "public.oban_insert") as heard, worker:
        await web.enqueue(note.new(1))
        await eventually(lambda: done == [1])
        connection = await asyncpg.connect(url)
        async with connection.transaction():
            await web.enqueue(note.new(2), conn=connection)
        await connection.close()
        await eventually(lambda: done == [1, 2])
        marked = await asyncpg.connect(url)
        await marked.execute("SELECT pg_notify('public.oban_insert', 'the end')")
        await marked.close()
        await eventually(lambda: heard)
        [listening] = (
            await run(
                web,
                "SELECT count(*) FROM pg_stat_activity "
                "WHERE datname = current_database() AND query LIKE 'LISTEN%oban_insert%'",
            )
        )[0]

    assert heard == ["the end"]
    assert listening == 1, "the test's own"


async def test_a_wake_up_that_came_while_the_heartbeat_failed_is_made_up_for_by_the_next_beat(
    make: Make,
) -> None:
    """Connections that are killed take both: the producer must not claim before it has beaten again."""
    worker = make(queues={"default": 5}, stage_interval=3600)

    async with worker:
        await eventually(lambda: getattr(worker._runtime().notifier, "status", "") == "listening")
        worker._runtime().pulse.stops()
        await worker.enqueue(note.new(1))
        await eventually(lambda: done == [1])


async def test_a_cancel_reaches_the_node_that_runs_the_job(make: Make, url: str) -> None:
    web, worker = make(), make(queues={"default": 5})

    async with worker, hearing(url, "public.oban_signal") as heard:
        running = await web.enqueue(wait.new())
        assert running.id is not None
        await eventually(lambda: worker._producers["default"].held)
        await web.cancel_job(running.id)
        await eventually(lambda: not worker._producers["default"].held)
        found = await web.get_job(running.id)

    assert found is not None
    assert found.state == "cancelled"
    assert heard == [f'{{"action":"pkill","job_id":{running.id}}}']


async def test_a_cancel_from_obans_dashboard_is_obeyed(make: Make, url: str) -> None:
    """Oban writes the row, then sends the same message."""
    worker = make(queues={"default": 5})

    async with worker:
        running = await worker.enqueue(wait.new())
        await eventually(lambda: worker._producers["default"].held)
        await run(
            worker, f"UPDATE oban_jobs SET state = 'cancelled', cancelled_at = now() WHERE id = {running.id}"
        )
        await run(
            worker,
            f"""SELECT pg_notify('public.oban_signal', '{{"job_id": {running.id}, "action": "pkill"}}')""",
        )
        await eventually(lambda: not worker._producers["default"].held)


@job(name="postgres.until_open")
async def until_open(number: int) -> None:
    await opened[number].wait()
    done.append(number)


opened: dict[int, asyncio.Event] = {}


@asynccontextmanager
async def held_by_a_session(url: str, id: int | None) -> AsyncGenerator[None, None]:
    """A row that somebody looks at `FOR UPDATE`, and then goes to lunch."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("BEGIN")
        await connection.fetchval("SELECT 1 FROM oban_jobs WHERE id = $1 FOR UPDATE", id)
        yield
    finally:
        await connection.close()


async def test_a_row_that_another_session_holds_stops_no_other_job_of_the_queue(make: Make, url: str) -> None:
    opened.update({0: asyncio.Event()})
    worker = make("?command_timeout=1", queues={"default": 5}, stage_interval=0.1)

    async with worker:
        producer = worker._producers["default"]
        stuck = await worker.enqueue(until_open.new(0))
        await eventually(lambda: producer.held)
        async with held_by_a_session(url, stuck.id):
            opened[0].set()
            await eventually(lambda: done == [0])
            for number in range(1, 31):
                await worker.enqueue(note.new(number))
            await eventually(lambda: _is_counted(worker, {"completed": 30, "executing": 1}), timeout=60)
            assert list(producer.held) == [stuck.id], (
                "it counts against the limit until its outcome is stored"
            )
        await eventually(lambda: not producer.held)

    assert await worker.count_jobs() == {"default": {"completed": 31}}
    assert sorted(done) == list(range(31))


async def test_a_stop_does_not_wait_long_for_a_row_that_another_session_holds(
    make: Make, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    opened.update({0: asyncio.Event()})
    worker = make("?command_timeout=1", queues={"default": 5}, grace_period=300)

    async with worker:
        producer = worker._producers["default"]
        stuck = await worker.enqueue(until_open.new(0))
        await eventually(lambda: producer.held)
        async with held_by_a_session(url, stuck.id):
            opened[0].set()
            await eventually(lambda: producer._apart, timeout=60)
            await asyncio.wait_for(worker.stop(), 200)

    assert any(f"the outcomes of [{stuck.id}] could not be stored" in r.getMessage() for r in caplog.records)


async def test_outcomes_are_all_stored_after_every_connection_was_broken(make: Make, url: str) -> None:
    opened.update({number: asyncio.Event() for number in range(20)})
    worker = make("?application_name=broken", queues={"default": 20})

    async with worker:
        producer = worker._producers["default"]
        await worker.enqueue_all(until_open.new(number) for number in range(20))
        await eventually(lambda: len(producer.held) == 20)
        admin = await asyncpg.connect(url)
        try:
            for event in opened.values():
                event.set()
            await admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'broken'"
            )
        finally:
            await admin.close()
        await eventually(lambda: not producer.held)

    assert await worker.count_jobs() == {"default": {"completed": 20}}
    assert sorted(done) == list(range(20))


async def _is_counted(app: Staffa, expected: dict[str, int]) -> bool:
    return (await app.count_jobs()).get("default", {}) == expected


async def test_a_row_by_hand_under_our_node_does_not_stop_it_from_claiming(
    make: Make, url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A release that the database refuses, or that does not find its claim."""
    monkeypatch.setattr(Heartbeat.__init__, "__defaults__", (0.05,))
    worker = make(queues={"default": 5}, stage_interval=0.1)
    async with worker:
        await run(
            worker,
            f"""
INSERT INTO oban_jobs (worker, queue, args, state, attempt, attempted_by, attempted_at)
SELECT 'by.hand', 'default', '{{}}', 'executing', attempt,
    array['{worker.config.node}', '{worker._producers["default"].uuid}'], now() AT TIME ZONE 'utc'
FROM (VALUES (0), (1)) AS rows (attempt)
""",
        )
        await run(
            worker,
            """
ALTER TABLE oban_jobs ADD CONSTRAINT odd CHECK (NOT (worker = 'by.hand' AND state = 'available' AND id = 1))
""",
        )
        await eventually(lambda: any("job 1 executes" in r.getMessage() for r in caplog.records))
        beaten = await run(worker, "SELECT updated_at FROM staffa_producers")
        await eventually(lambda: _has_changed(worker, beaten))
        await worker.enqueue(note.new(5))
        await eventually(lambda: done == [5])

    assert not [r for r in caplog.records if "a heartbeat failed" in r.getMessage()]


async def _has_changed(app: Staffa, beaten: Rows) -> bool:
    return await run(app, "SELECT updated_at FROM staffa_producers") != beaten


async def test_two_prefixes_are_two_worlds(make: Make, url: str) -> None:
    one = make(prefix="one world", queues={"default": 5})
    other = make(prefix='an"other', queues={"default": 5}, stage_interval=0.05)
    for app in (one, other):
        await app.migrate()
    try:
        async with one, other:
            await one.enqueue(note.new(1))
            await eventually(lambda: done == [1])
        assert await one.count_jobs() == {"default": {"completed": 1}}
        assert await other.count_jobs() == {}
    finally:
        for app in (one, other):
            await app.migrate(0)
            await run(
                app,
                f"DROP SCHEMA {app._runtime().engine.migrations.dialect.identifier(app.config.prefix or '')}",
            )


async def test_case_34_a_full_queue_of_notifications_does_not_keep_jobs_out(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """A session that listens and never ends its transaction fills it; then every NOTIFY fails."""
    plain = make()
    await run(plain, "CREATE SCHEMA full_queue")
    try:
        await run(
            plain,
            """
CREATE FUNCTION full_queue.pg_notify(text, text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN RAISE 'too many notifications in the NOTIFY queue' USING ERRCODE = '54000'; END $$
""",
        )
        app = make("?search_path=full_queue,pg_catalog,public")
        with caplog.at_level(logging.ERROR):
            await app.enqueue(note.new(1))
            await app.enqueue_all([note.new(2), note.new(3)])
    finally:
        await run(plain, "DROP SCHEMA full_queue CASCADE")

    assert await plain.count_jobs() == {"default": {"available": 3}}
    assert any("other nodes are not told" in record.getMessage() for record in caplog.records)


async def test_a_first_enqueue_on_a_users_connection_knows_the_table_that_is_there(
    make: Make, url: str
) -> None:
    """In the table of Oban's Python port, tags are of another type."""
    connection = await asyncpg.connect(url, server_settings={"search_path": "port"})
    try:
        await connection.execute("CREATE SCHEMA port")
        for text in port("jsonb NOT NULL DEFAULT '[]'"):
            await connection.execute(text)
        await make(prefix="port").migrate()

        stored = await make(prefix="port").enqueue(note.using(tags=["a"]).new(1), conn=connection)

        assert (
            await connection.fetchval("SELECT tags::text FROM port.oban_jobs WHERE id = $1", stored.id)
            == '["a"]'
        )
    finally:
        await connection.execute("DROP SCHEMA port CASCADE")
        await connection.close()


async def test_what_a_running_job_sees_of_itself_is_what_was_stored(make: Make) -> None:
    worker = make(queues={"default": 5})
    seen: list[Job] = []

    @job(name="postgres.look")
    async def look() -> None:
        running = current_job()
        assert running is not None
        seen.append(running)

    async with worker:
        stored = await worker.enqueue(look.using(tags=["a", "b"], meta={"m": 1}, priority=3).new())
        await eventually(lambda: seen)

    assert [seen[0].id, seen[0].tags, seen[0].meta, seen[0].priority, seen[0].attempt] == [
        stored.id, ["a", "b"], {"m": 1}, 3, 1,
    ]  # fmt: skip
    assert (seen[0].inserted_at, seen[0].scheduled_at) == (stored.inserted_at, stored.scheduled_at)


async def test_missing_tables_are_not_made_but_told(url: str, make: Make) -> None:
    app = make(prefix="nothing_here", queues={"default": 1})

    for verb in (app.start(), app.enqueue(note.new(1)), app.count_jobs()):
        with pytest.raises(Exception, match="the tables of Staffa are missing: run `staffa migrate up`"):
            await verb


def test_each_event_loop_has_connections_of_its_own_which_end_with_it(tmp_path: Path) -> None:
    """A loop per call, as in a script or in synchronous code, without ever closing the instance."""

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
    app = Staffa(f"{url}?application_name=loops", plugins=False)
    for number in range(5):
        asyncio.run(app.enqueue(note.new(number)))

    async def left() -> int:
        connection = await asyncpg.connect(url)
        try:
            text = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'loops'"
            await eventually(lambda: connection.fetchval(f"SELECT ({text}) = 0"))
            return int(await connection.fetchval(text))
        finally:
            await connection.close()

    assert asyncio.run(left()) == 0
    assert asyncio.run(app.count_jobs()) == {"default": {"available": 5}}
