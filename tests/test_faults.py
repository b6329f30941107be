"""Servers, networks and processes that fail under PostgreSQL: nothing is lost, nothing hangs, every repeat is explained."""

import asyncio
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any, Literal

import asyncpg
import pytest

from staffa import Job, Queue, RunningJob, Staffa, job
from staffa.errors import DatabaseUnavailable
from staffa.signals import MOMENT
from tests.support import ServerMissing, eventually
from tests.support.fault_jobs import brief, brief_in_thread, gated, gated_twice, gated_unless_rescued
from tests.support.faults import ENQUEUE, SETTLES_WITHIN, Events, PgBouncer, Scene
from tests.support.process_jobs import endless, first_time_endless
from tests.support.processes import Process
from tests.support.proxy import Proxy
from tests.support.servers import Mode, PostgresServer, server_needed

long = pytest.mark.long

# Texts that only one statement of ours contains.
CLAIM, ACK, INSERT = "THEN attempt + 1", "s(ack_id, ack_token", "INSERT INTO"

BLOCKED = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"

WHOLE = "id, state::text, attempt, attempted_at, attempted_by, completed_at, errors::text, meta::text"

ran: list[int] = []
gates: dict[str, asyncio.Event] = {}


@job(name="faults.count")
async def count(job: RunningJob) -> None:
    ran.append(job.id)


@job(name="faults.wait")
async def wait(job: RunningJob) -> None:
    ran.append(job.id)
    await gates["wait"].wait()


@pytest.fixture(autouse=True)
def _fresh() -> None:
    ran.clear()
    gates["wait"] = asyncio.Event()


@pytest.fixture
def settings(request: pytest.FixtureRequest) -> dict[str, str]:
    """Settings of the server; a test gives its own by indirect parameters."""
    return getattr(request, "param", {})


@pytest.fixture
async def server(tmp_path: Path, settings: dict[str, str]) -> AsyncGenerator[PostgresServer, None]:
    """A private server with Staffa's tables."""
    with server_needed():
        server = await PostgresServer.fresh(tmp_path, **settings).__aenter__()
    try:
        app = Staffa(server.url)
        await app.migrate()
        await app.close()
        yield server
    finally:
        await server.__aexit__()


@pytest.fixture
async def scene(server: PostgresServer, tmp_path: Path) -> AsyncGenerator[Scene, None]:
    """That server, and processes that end with the test."""
    scene = Scene(server, tmp_path)
    yield scene
    scene.end()


Make = Callable[..., Staffa]


@pytest.fixture
async def make(server: PostgresServer) -> AsyncGenerator[Make, None]:
    """Makes instances in this process, which are closed at the end."""
    async with AsyncExitStack() as stack:

        def made(url: str = "", **options: Any) -> Staffa:
            app = Staffa(url or server.url, **options)
            stack.push_async_callback(app.close)
            return app

        yield made


@pytest.fixture
async def bouncer(server: PostgresServer) -> AsyncGenerator[PgBouncer, None]:
    """PgBouncer in transaction mode before that server."""
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if program is None:
        pytest.skip("PgBouncer is not installed here: apt-get install pgbouncer")
    try:
        async with PgBouncer(server, program) as bouncer:
            yield bouncer
    except ServerMissing as missing:
        pytest.fail(str(missing))


# Processes that die or stop.


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=long)])
async def test_workers_killed_in_the_middle_of_work_lose_no_job__case_59(kills: int, scene: Scene) -> None:
    jobs = 300 * kills
    await scene.enqueue([random.choice([brief, brief_in_thread]).new() for _ in range(jobs)])
    workers = [scene.start(), scene.start()]

    for kill in range(kills):
        await scene.begins(jobs * (kill + 1) // (kills + 2))
        victim = workers.pop(random.randrange(2))
        victim.kill()
        await scene.make_stale(victim)
        workers.append(scene.start())
    await scene.settles(jobs)

    assert await scene.states() == {"completed": jobs}
    await scene.law(repeats=True)


@long
async def test_jobs_of_a_killed_node_are_rescued_by_the_others__case_59(scene: Scene) -> None:
    await scene.enqueue([first_time_endless.new() for _ in range(10)])
    last = (await scene.enqueue([endless.using(max_attempts=1).new()]))[0]
    victim = scene.start(url=scene.server.url)
    await scene.begins(10)
    await eventually(lambda: _executes(scene, 10))

    scene.start()
    await scene.lives(2)
    victim.kill()
    await scene.make_stale(victim)
    await eventually(lambda: _has(scene, {"completed": 10}))
    # The eleventh was claimed by the other; it dies too, during its last attempt.
    await scene.begins(11)
    scene.start()
    await scene.lives(2)
    scene.processes[1].kill()
    await scene.make_stale(scene.processes[1])
    await scene.settles(11)

    assert await scene.states() == {"completed": 10, "discarded": 1}
    assert await scene.rows("state::text, attempt", f"WHERE id = {last.id}") == [("discarded", 1)]
    await scene.law(repeats=True)


async def _executes(scene: Scene, jobs: int) -> bool:
    return (await scene.states()).get("executing") == jobs


async def _has(scene: Scene, states: dict[str, int]) -> bool:
    return states.items() <= (await scene.states()).items()


async def test_sigterm_lets_jobs_finish_and_puts_the_others_back__case_56(scene: Scene) -> None:
    await scene.enqueue([gated.new() for _ in range(4)])
    await scene.enqueue([endless.new() for _ in range(2)])
    worker = scene.start(GRACE="1")
    await scene.begins(6)

    worker.send(signal.SIGTERM)
    await eventually(lambda: "stopping" in worker.said)
    scene.open_gate()
    assert worker.wait() == 0

    rows = await scene.rows("state::text, attempt")
    assert rows == [("completed", 1)] * 4 + [("available", 0)] * 2
    assert "were put back" in worker.said
    assert await scene.server_rows("SELECT count(*) FROM staffa_producers") == [(0,)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_cuts_the_grace_period_short__case_57(
    number: signal.Signals, scene: Scene
) -> None:
    await scene.enqueue([endless.new(), gated.new()])
    worker = scene.start(GRACE="600")
    await scene.begins(2)

    worker.send(number)
    await eventually(lambda: "stopping" in worker.said)
    first = time.monotonic()
    await eventually(lambda: time.monotonic() - first > MOMENT)
    worker.send(number)

    assert worker.wait() == 0
    assert await scene.rows("state::text, attempt") == [("available", 0)] * 2


async def test_workers_stopped_again_and_again_burn_no_attempt__case_56(scene: Scene) -> None:
    await scene.enqueue([brief.new() for _ in range(300)])
    for stop in range(3):
        worker = scene.start(GRACE="0.001")
        await scene.begins(60 * (stop + 1))
        worker.send(signal.SIGTERM)
        assert worker.wait() == 0
    scene.start()
    await scene.settles(300)

    assert await scene.rows("DISTINCT state::text, attempt", "") == [("completed", 1)]
    await scene.law(given_back=3)


# A server that goes away and comes back.

both = pytest.mark.parametrize("mode", ["fast", "immediate"])
either = pytest.mark.parametrize("mode", [pytest.param("fast", marks=long), "immediate"])


@either
async def test_a_restart_of_the_server_while_idle_harms_nothing__case_39(mode: Mode, scene: Scene) -> None:
    worker = scene.start()
    await scene.lives(1)
    for n in range(3):
        await asyncio.to_thread(scene.server.restart, mode)
        await scene.enqueue([brief.new()])
        await scene.settles(n + 1)

    worker.send(signal.SIGTERM)
    assert worker.wait() == 0
    await scene.law()


@pytest.mark.parametrize(
    ("mode", "times"),
    [pytest.param("fast", 5, marks=long), ("immediate", 2), pytest.param("immediate", 10, marks=long)],
)
async def test_a_restart_of_the_server_under_a_stream_of_jobs_loses_none__case_39(
    mode: Mode, times: int, scene: Scene
) -> None:
    workers = [scene.start(), scene.start()]
    await scene.lives(2)
    writers = [scene.start(ENQUEUE), scene.start(ENQUEUE)]
    for _ in range(times):
        await scene.begins(len(scene.noted("begin")) + 100)
        met = [writer.said.count("an outage") for writer in writers]
        await asyncio.to_thread(scene.server.stop, mode)
        await eventually(partial(_meet_outage, writers, met))
        await asyncio.to_thread(scene.server.start)
    await scene.begins(len(scene.noted("begin")) + 100)
    scene.open_gate()

    assert [writer.wait() for writer in writers] == [0, 0]
    await scene.settles()
    for worker in workers:
        worker.send(signal.SIGTERM)
    assert [worker.wait() for worker in workers] == [0, 0]
    assert set(await scene.states()) == {"completed"}
    await scene.law()


def _meet_outage(writers: list[Process], met: list[int]) -> bool:
    now = [writer.said.count("an outage") for writer in writers]
    return all(after > before for before, after in zip(met, now, strict=True))


@both
async def test_jobs_that_end_while_the_server_is_away_are_stored_when_it_is_back__case_24_and_39(
    mode: Mode, scene: Scene
) -> None:
    worker = scene.start()
    await scene.enqueue([gated.new() for _ in range(10)])
    await scene.begins(10)

    await asyncio.to_thread(scene.server.stop, mode)
    scene.open_gate()
    await eventually(lambda: len(scene.noted("end")) == 10)
    await eventually(lambda: "goes on in" in worker.said)
    await asyncio.to_thread(scene.server.start)
    await scene.settles(10)

    assert await scene.rows("DISTINCT state::text, attempt", "") == [("completed", 1)]
    await scene.law()


@either
async def test_a_restart_of_the_server_while_jobs_come_due_stages_each_once__case_39(
    mode: Mode, scene: Scene
) -> None:
    await scene.enqueue([brief.using(schedule_in=n / 250).new() for n in range(1_000)])
    scene.start(STAGE="0.1")
    scene.start(STAGE="0.1")
    for begun in (50, 300):
        await scene.begins(begun)
        await asyncio.to_thread(scene.server.restart, mode)
    await scene.settles(1_000)

    assert await scene.states() == {"completed": 1_000}
    await scene.law()


@long
async def test_a_stop_while_the_server_is_away_ends_and_others_do_the_rest__case_39_and_56(
    scene: Scene,
) -> None:
    """What ended and could not be stored is done again: nobody can know better."""
    worker = scene.start(GRACE="1")
    await scene.enqueue([gated.new(), first_time_endless.new(), gated.new()])
    await scene.begins(3)
    await asyncio.to_thread(scene.server.stop, "immediate")
    scene.open_gate()
    await eventually(lambda: len(scene.noted("end")) == 2)
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0
    assert "could not be stored" in worker.said

    await asyncio.to_thread(scene.server.start)
    assert await scene.states() == {"executing": 3}
    await scene.make_stale(worker)
    scene.start()
    await scene.settles(3)
    assert await scene.rows("DISTINCT state::text, attempt", "") == [("completed", 2)]
    await scene.law(repeats=True)


@long
async def test_a_table_that_is_locked_for_longer_than_a_statement_may_take__case_42(scene: Scene) -> None:
    worker = scene.start(url=f"{scene.server.url}?command_timeout=1")
    await scene.enqueue([gated.new() for _ in range(5)])
    await scene.begins(5)
    holder = await asyncpg.connect(scene.server.url)
    transaction = holder.transaction()
    await transaction.start()
    await holder.execute("LOCK TABLE oban_jobs IN ACCESS EXCLUSIVE MODE")
    scene.open_gate()
    await eventually(lambda: worker.said.count("did not answer in time") >= 5, timeout=SETTLES_WITHIN)
    await transaction.rollback()
    await holder.close()

    await scene.enqueue([brief.new() for _ in range(20)])
    await scene.settles(25)
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0
    await scene.law()


async def test_connections_killed_ten_times_come_back_and_do_not_leak__case_28_and_31(scene: Scene) -> None:
    worker = scene.start(STAGE="3600")  # only a message wakes it: by itself it looks once a minute
    await scene.lives(1)
    await scene.enqueue([brief.new()])
    await scene.settles(1)
    for n in range(10):
        await eventually(lambda: scene.server.backends("node"))
        await asyncio.to_thread(scene.server.terminate, "node")
        if n % 3 == 0:
            await scene.enqueue([brief.new() for _ in range(10)])
    await eventually(lambda: _listens(scene))

    done = len(await scene.rows("id"))
    for n in range(20):
        await scene.enqueue([brief.new()])
        await scene.settles(done + n + 1, timeout=30)
    # One listens and one beats; the pool opens as many as are busy at once, which here is one or two.
    assert len(await asyncio.to_thread(scene.server.backends, "node")) <= 5
    assert worker.said.count("ended although nobody stopped it") == 0
    await scene.law()


async def _listens(scene: Scene) -> bool:
    """Whether the node's notifier waits for messages on a connection of the server."""
    text = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'node' AND query LIKE 'LISTEN%'"
    heard = scene.processes[0].said.rpartition("the notifier of staffa is ")[2]
    return heard.startswith("listening") and bool(await scene.server_rows(text))


# Answers that are lost.


async def test_a_claim_whose_answer_is_lost_costs_no_attempt__case_69(scene: Scene, make: Make) -> None:
    stored = await scene.enqueue([count.new() for _ in range(5)])
    with Proxy(scene.server.url) as proxy, Events("job.stop", "job.lost", "job.exception") as events:
        proxy.lose_answer_to(CLAIM)
        app = make(proxy.url, queues={"default": 10})
        await app.start()
        await scene.settles(5)
        await app.close()

    assert proxy.lost == 1
    ids = [job.id for job in stored]
    assert sorted(ran) == ids
    assert sorted(events.seen) == [("job.stop", id) for id in ids]
    assert await scene.rows("DISTINCT state::text, attempt, meta::text", "") == [("completed", 1, "{}")]


@pytest.mark.parametrize("ack", ["batch", "immediate"])
async def test_an_ack_whose_answer_is_lost_is_stored_and_counted_once__case_69(
    ack: Literal["batch", "immediate"], scene: Scene, make: Make
) -> None:
    with Proxy(scene.server.url) as proxy, Events("job.stop", "job.lost", "job.exception") as events:
        app = make(proxy.url, queues={"default": Queue(limit=10, ack=ack)})
        await app.start()
        await scene.enqueue([wait.new() for _ in range(3)])
        await eventually(lambda: len(ran) == 3)
        proxy.lose_answer_to(ACK)
        gates["wait"].set()
        await eventually(lambda: len(events.seen) == 3)
        rows = await scene.rows("state::text, attempt, completed_at")
        await app.close()

    assert proxy.lost == 1
    assert [row[:2] for row in rows] == [("completed", 1)] * 3
    assert await scene.rows("state::text, attempt, completed_at") == rows
    assert sorted(events.seen) == [("job.stop", id) for id in sorted(ran)]
    assert len(set(ran)) == 3


@pytest.mark.parametrize(("jobs", "text"), [(1, INSERT), (20, INSERT), (2_500, "COMMIT"), (2_500, INSERT)])
async def test_an_enqueue_whose_answer_is_lost_is_stored_once_or_not_at_all__case_69(
    jobs: int, text: str, scene: Scene, make: Make
) -> None:
    with Proxy(scene.server.url) as proxy:
        app = make(proxy.url)
        await app.list_jobs()
        proxy.lose_answer_to(text)
        new = [brief.new() for _ in range(jobs)]
        with pytest.raises(DatabaseUnavailable):
            await (app.enqueue(new[0]) if jobs == 1 else app.enqueue_all(new))

        assert proxy.lost == 1
        stored = len(await scene.rows("id"))
        assert stored in (0, jobs)
        assert {one.id for one in new} == {None}
        await app.enqueue_all(new)  # the caller may try again, at its own risk
        assert len(await scene.rows("id")) == stored + jobs
        await app.close()


# A cancel that meets an ack.


async def test_a_job_is_either_cancelled_or_completed_and_stays_so__case_4_and_26_and_77(
    scene: Scene, make: Make
) -> None:
    app = make(scene.url)
    worker = scene.start()
    await scene.lives(1)
    cancelled: dict[int, bool] = {}

    async def cancel_some(jobs: int) -> None:
        for _ in range(jobs):
            new = await app.enqueue(random.choice([brief, brief_in_thread]).new())
            id = new.id or 0
            await eventually(lambda: scene.noted("begin")[id], timeout=SETTLES_WITHIN)  # noqa: B023
            await asyncio.sleep(random.uniform(0, 0.03))
            cancelled[id] = await app.cancel_job(id) is not None

    await asyncio.gather(*(cancel_some(20) for _ in range(8)))
    await scene.settles(160)
    rows = await scene.rows("id, state::text, completed_at, cancelled_at, attempt")
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0

    assert {row[0]: row[1] == "cancelled" for row in rows} == cancelled
    assert await scene.rows("id, state::text, completed_at, cancelled_at, attempt") == rows
    await scene.law()


@pytest.mark.parametrize("first", ["ack", "cancel"])
async def test_a_cancel_and_an_ack_that_wait_for_the_same_row_never_mix__case_4_and_26(
    first: str, scene: Scene, make: Make
) -> None:
    app, other = make(queues={"default": 10}, plugins=False), make(scene.url)
    await app.start()
    [stored] = await scene.enqueue([wait.new()])
    await eventually(lambda: ran)
    id = stored.id or 0
    holder = await asyncpg.connect(scene.server.url)
    transaction = holder.transaction()
    await transaction.start()
    await holder.execute("SELECT 1 FROM oban_jobs FOR UPDATE")

    with Events("job.stop", "job.lost", "job.exception", "job.released") as events:
        if first == "ack":
            gates["wait"].set()
            await eventually(lambda: _wait_for_locks(scene, 1))
        cancelling = asyncio.create_task(other.cancel_job(id))
        await eventually(lambda: _wait_for_locks(scene, 1 + (first == "ack")))
        if first == "cancel":
            gates["wait"].set()
            await eventually(lambda: _wait_for_locks(scene, 2))
        await transaction.rollback()
        await holder.close()
        cancelled = await cancelling is not None
        await eventually(lambda: events.seen)
        rows = await scene.rows("state::text, completed_at IS NULL, cancelled_at IS NULL, attempt")
        await app.close()

    assert rows == ([("cancelled", True, False, 1)] if cancelled else [("completed", False, True, 1)])
    assert events.seen == [("job.lost" if cancelled else "job.stop", id)]
    assert await scene.rows("state::text, completed_at IS NULL, cancelled_at IS NULL, attempt") == rows
    assert ran == [id]


async def _wait_for_locks(scene: Scene, backends: int) -> bool:
    return await scene.server_rows(BLOCKED) == [(backends,)]


# A network in which bytes vanish.


@long
async def test_late_acks_of_a_node_that_was_cut_off_change_nothing__case_1_and_29(scene: Scene) -> None:
    """Neither those of jobs that others have done meanwhile, nor those of jobs that others are just doing."""
    with Proxy(scene.server.url) as proxy:
        lost = scene.start(url=f"{proxy.url}?command_timeout=2&connect_timeout=2")
        await scene.lives(1)
        await scene.enqueue([gated_unless_rescued.new() for _ in range(4)])
        await scene.enqueue([gated_twice.new() for _ in range(4)])
        await scene.begins(8)
        other = scene.start()
        await scene.lives(2)
        proxy.blackhole()

        async def rescued() -> bool:
            await scene.make_stale(lost)
            return await scene.states() == {"completed": 4, "executing": 4} and _begun_twice(scene, 8)

        await eventually(rescued, timeout=SETTLES_WITHIN)
        scene.open_gate()  # the work of the node that was cut off ends, too
        await eventually(lambda: sum(scene.noted("end").values()) == 12)
        await eventually(lambda: "a heartbeat failed" in lost.said, timeout=SETTLES_WITHIN)
        before = await scene.rows(WHOLE)
        proxy.restore()
        await eventually(lambda: lost.said.count("its outcome was not stored") == 8, timeout=SETTLES_WITHIN)

        assert await scene.rows(WHOLE) == before
        scene.open_gate("2")
        await scene.settles(8)
        other.send(signal.SIGTERM)
        assert other.wait() == 0
        await scene.enqueue([brief.new() for _ in range(5)])
        await scene.settles(13)
        lost.send(signal.SIGTERM)
        assert lost.wait() == 0
    await scene.law(repeats=True)


def _begun_twice(scene: Scene, jobs: int) -> bool:
    return list(scene.noted("begin").values()) == [2] * jobs


@long
async def test_jobs_of_a_node_that_was_cut_off_are_stopped_when_it_is_back__case_1(scene: Scene) -> None:
    with Proxy(scene.server.url) as proxy:
        lost = scene.start(url=f"{proxy.url}?command_timeout=2&connect_timeout=2")
        await scene.lives(1)
        await scene.enqueue([first_time_endless.new() for _ in range(4)])
        await scene.begins(4)
        scene.start()
        await scene.lives(2)
        proxy.blackhole()

        async def rescued() -> bool:
            await scene.make_stale(lost)
            return await scene.states() == {"completed": 4}

        await eventually(rescued, timeout=SETTLES_WITHIN)
        proxy.restore()
        await eventually(lambda: lost.said.count("its outcome was not stored") == 4, timeout=SETTLES_WITHIN)
        lost.send(signal.SIGTERM)
        assert lost.wait() == 0
    await scene.law(repeats=True)


@long
async def test_a_stop_while_the_network_is_dead_ends__case_29_and_56(scene: Scene) -> None:
    with Proxy(scene.server.url) as proxy:
        worker = scene.start(url=f"{proxy.url}?command_timeout=2&connect_timeout=2", GRACE="1")
        await scene.enqueue([first_time_endless.new() for _ in range(3)])
        await scene.begins(3)
        proxy.blackhole()
        worker.send(signal.SIGTERM)
        assert worker.wait() == 0
        assert await scene.states() == {"executing": 3}
    await scene.make_stale(worker)
    scene.start()
    await scene.settles(3)
    await scene.law(repeats=True)


# A server that is there and refuses.


def test_a_worker_that_starts_without_its_server_says_so_and_ends(server: PostgresServer) -> None:
    server.stop()
    command = ["-m", "staffa", "start", "--database", server.url, "--queues", "default=1"]
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=SETTLES_WITHIN, check=False
    )

    assert done.returncode == 1
    assert "Is the server running" in done.stderr
    assert f"127.0.0.1:{server.port}" in done.stderr
    assert "Traceback" not in done.stderr


async def test_a_server_that_turns_read_only_is_outlasted__case_38(scene: Scene, make: Make) -> None:
    app = make(scene.url)
    worker = scene.start()
    await scene.enqueue([gated.new() for _ in range(3)])
    await scene.begins(3)

    await _read_only(scene, "on")
    with pytest.raises(DatabaseUnavailable, match=r"takes no writes.*let the url name the primary"):
        await _until_it_fails(app)
    scene.open_gate()
    await eventually(lambda: "producer default failed and goes on in" in worker.said)
    await eventually(lambda: "a heartbeat failed" in worker.said)
    assert "takes no writes" in worker.said
    await _read_only(scene, "off")
    await eventually(lambda: _enqueued(app), timeout=SETTLES_WITHIN)
    await scene.settles()

    worker.send(signal.SIGTERM)
    assert worker.wait() == 0
    assert set(await scene.states()) == {"completed"}
    await scene.law()


async def _read_only(scene: Scene, value: str) -> None:
    """What a primary's demotion looks like to connections that stay: they take no writes from now on."""
    connection = await asyncpg.connect(scene.server.url)
    try:
        await connection.execute("SET default_transaction_read_only = off")
        await connection.execute(f"ALTER SYSTEM SET default_transaction_read_only = {value}")
        await connection.execute("SELECT pg_reload_conf()")
    finally:
        await connection.close()


async def _until_it_fails(app: Staffa) -> None:
    """The server tells its backends of a new setting, which takes a moment."""

    async def again() -> bool:
        await app.enqueue(brief.new())
        return False

    await eventually(again)


async def _enqueued(app: Staffa) -> bool:
    try:
        await app.enqueue(brief.new())
    except DatabaseUnavailable:
        return False
    return True


CROWDED = {"max_connections": "24", "superuser_reserved_connections": "14"}
USER = """
CREATE ROLE worker LOGIN;
GRANT ALL ON ALL TABLES IN SCHEMA public TO worker;
GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO worker;
"""


@long
@pytest.mark.parametrize("settings", [CROWDED], indirect=True)
async def test_a_server_without_a_free_connection_is_outlasted__case_44(scene: Scene) -> None:
    connection = await asyncpg.connect(scene.server.url)
    await connection.execute(USER)
    with Proxy(scene.server.url.replace("postgres@", "worker@")) as proxy:
        worker = scene.start(url=f"{proxy.url}?pool_size=4")
        await scene.lives(1)
        await scene.enqueue([gated.new() for _ in range(3)])
        await scene.begins(3)
        crowd = [await asyncpg.connect(scene.server.url) for _ in range(11)]
        await connection.fetch(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'node'"
        )
        scene.open_gate()
        await eventually(lambda: "connection slots" in worker.said, timeout=SETTLES_WITHIN)
        made, since = proxy.made, time.monotonic()
        await connection.execute("SELECT pg_sleep(3)")
        a_second = (proxy.made - made) / (time.monotonic() - since)
        assert await scene.states() == {"executing": 3}
        assert worker.said.count("goes on in") >= 1
        for one in crowd:
            await one.close()

        await scene.enqueue([brief.new() for _ in range(10)])
        await scene.settles(13)
        worker.send(signal.SIGTERM)
        assert worker.wait() == 0
    await connection.close()
    assert a_second < 20, "it does not hammer the server"
    await scene.law()


async def test_a_user_who_sits_in_a_transaction_stops_nobody(scene: Scene, make: Make) -> None:
    app = make(scene.url)
    [locked] = await scene.enqueue([brief.new()])
    user = await asyncpg.connect(scene.server.url)
    transaction = user.transaction()
    await transaction.start()
    await user.execute("SELECT 1 FROM oban_jobs FOR UPDATE")
    waiting = await app.enqueue(brief.new(), conn=user)
    scene.start()
    await scene.enqueue([brief.new() for _ in range(300)])
    await eventually(lambda: _has(scene, {"completed": 300, "available": 1}), timeout=SETTLES_WITHIN)
    assert scene.noted("begin").keys().isdisjoint({locked.id, waiting.id})

    await transaction.commit()
    await user.close()
    await scene.settles(302)
    await scene.law()


# A pooler between.


@long
async def test_everything_works_behind_pgbouncer_with_nothing_but_the_url__case_36(
    scene: Scene, bouncer: PgBouncer, make: Make
) -> None:
    app = make(bouncer.url)
    await app.migrate(0)
    await app.migrate()
    worker = scene.start(url=bouncer.url)
    victim = scene.start(url=bouncer.url)
    await scene.lives(2)

    # One, several, thousands; in a transaction of the user's, committed and not.
    await app.enqueue(brief.new())
    await app.enqueue_all(brief_in_thread.new() for _ in range(50))
    await app.enqueue_all(brief.using(schedule_in=0.5).new() for _ in range(1_200))
    user = await asyncpg.connect(bouncer.url, statement_cache_size=0)
    async with user.transaction():
        await app.enqueue(brief.new(), conn=user)
        await app.enqueue_all([brief.new() for _ in range(20)], conn=user)
    transaction = user.transaction()
    await transaction.start()
    undone = await app.enqueue(brief.new(), conn=user)
    await transaction.rollback()
    await user.close()
    assert undone.id is not None
    assert await app.get_job(undone.id) is None
    await scene.settles(1_272)

    stuck = await app.enqueue(endless.new())
    await scene.begins(1_273)
    assert stuck.id is not None
    assert await app.cancel_job(stuck.id) is not None
    assert await app.retry_job(stuck.id) is not None
    await eventually(lambda: scene.noted("begin")[stuck.id or 0] == 2, timeout=SETTLES_WITHIN)
    assert await app.cancel_job(stuck.id) is not None
    assert (await app.count_jobs())["default"] == {"completed": 1_272, "cancelled": 1}
    assert len(await app.list_queues()) == 2

    await app.enqueue_all(gated_unless_rescued.new() for _ in range(20))
    await eventually(lambda: sum(scene.noted("begin").values()) == 1_274 + 20, timeout=SETTLES_WITHIN)
    victim.kill()
    await scene.make_stale(victim)
    await eventually(lambda: _has(scene, {"available": 10}), timeout=SETTLES_WITHIN)
    scene.open_gate()
    await scene.settles(1_293)
    assert await scene.rows("attempt, count(*)", "WHERE state = 'completed' GROUP BY 1 ORDER BY 1") == [
        (1, 1_282),
        (2, 10),
    ]
    await eventually(lambda: "cannot hear PostgreSQL's notifications" in worker.said, timeout=SETTLES_WITHIN)
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0

    said = worker.said
    assert said.count("cannot hear PostgreSQL's notifications") == 1
    assert "prepared statement" not in scene.said()
    assert "Traceback" not in scene.said()
    assert " failed" not in said


async def test_statements_that_a_pooler_has_forgotten_are_run_again__case_36(
    scene: Scene, make: Make
) -> None:
    app = make(scene.url, queues={"default": 10})
    for jobs in (1, 20, 1_200):  # by itself, several, and in a transaction
        await app.enqueue_all(count.new() for _ in range(jobs))
        await _forget_statements(app)
        await app.enqueue_all(count.new() for _ in range(jobs))
    await _forget_statements(app)
    await app.start()
    await _forget_statements(app)
    await scene.settles(2 * 1_221)
    await app.close()

    assert len(ran) == len(set(ran)) == 2 * 1_221


async def _forget_statements(app: Staffa) -> None:
    connections: Any = app._runtime().connections
    for pool in connections._pools.values():
        for connection in [*pool._idle]:
            await connection.execute("DEALLOCATE ALL")


# Forks and event loops.

FORK = """
import asyncio, gc, multiprocessing, sys, warnings
warnings.simplefilter("error")
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
from staffa import Staffa
from tests.support.process_jobs import quick

app = Staffa(sys.argv[1])

def enqueue(n):
    return asyncio.run(_enqueue(n))

async def _enqueue(n):
    return [(await app.enqueue(quick.new())).id for _ in range(n)]

def child(pipe):
    ids = enqueue(5)
    asyncio.run(app.close())
    gc.collect()
    pipe.send(ids)
    pipe.close()

async def in_a_loop(context):
    ids = await _enqueue(5)
    process, pipe = spawn(context)  # a fork beside open connections
    ids += await _enqueue(5)
    ids += await asyncio.to_thread(pipe.recv)
    await asyncio.to_thread(process.join)
    assert process.exitcode == 0
    return ids + await _enqueue(5)

def spawn(context):
    ours, theirs = context.Pipe()
    process = context.Process(target=child, args=(theirs,))
    process.start()
    theirs.close()
    return process, ours

context = multiprocessing.get_context("fork")
ids = enqueue(5)
process, pipe = spawn(context)
ids += enqueue(5) + pipe.recv()
process.join()
assert process.exitcode == 0
ids += asyncio.run(in_a_loop(context))
ids += enqueue(5)
assert len(set(ids)) == len(ids) == 40, ids
"""


@pytest.mark.skipif(sys.platform == "win32", reason="processes cannot fork there")
async def test_a_fork_and_its_parent_have_connections_of_their_own__case_73(scene: Scene) -> None:
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-X", "dev", "-c", FORK, f"{scene.server.url}?application_name=node"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=SETTLES_WITHIN,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert await scene.states() == {"available": 40}
    await eventually(lambda: _left(scene, 0))


def test_an_event_loop_for_each_call_leaves_nothing_behind__case_73(server: PostgresServer) -> None:
    app = Staffa(f"{server.url}?application_name=node")

    def enqueue() -> None:
        ids.extend(asyncio.run(_enqueue_some(app)) for _ in range(10))

    ids: list[list[int | None]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        enqueue()
        asyncio.run(_gone(server))
        threads = [threading.Thread(target=enqueue) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        asyncio.run(_gone(server))

    stored = [id for some in ids for id in some]
    assert len(stored) == len(set(stored)) == 40 * 6
    assert server.query("SELECT count(*) FROM oban_jobs") == [(40 * 6,)]
    asyncio.run(app.close())


async def _enqueue_some(app: Staffa) -> list[int | None]:
    stored: list[Job] = list(await asyncio.gather(*(app.enqueue(count.new()) for _ in range(4))))
    stored += await app.enqueue_all(count.new() for _ in range(2))
    return [one.id for one in stored]


async def _gone(server: PostgresServer) -> None:
    await eventually(lambda: not server.backends("node"))


async def _left(scene: Scene, connections: int) -> bool:
    return len(await asyncio.to_thread(scene.server.backends, "node")) == connections
