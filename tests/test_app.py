"""An instance: its verbs, its life in one event loop, in several, in none, and after a fork."""

import asyncio
import logging
import os
import sqlite3
import threading
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from staffa import (
    DatabaseUnavailable,
    InvalidJob,
    Job,
    Lifeline,
    Plugin,
    Pruner,
    Staffa,
    Worker,
    clock,
    job,
    telemetry,
)
from staffa.errors import DatabaseError, InvalidOption, SchemaError, UnsupportedConnection
from staffa.runners import ThreadRunner
from tests.support import eventually

done: list[int] = []


@job(name="app.note")
async def note(n: int) -> None:
    done.append(n)


class Shout(Worker, name="app.Shout", queue="shouts", priority=2):
    async def perform(self, job: Job) -> object:
        return job.args["text"].upper()


@pytest.fixture(autouse=True)
def _fresh() -> None:
    done.clear()
    held.clear()
    gate.clear()


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'jobs.db'}"


# Enqueueing.


async def test_an_enqueued_job_comes_back_with_what_the_database_gave_it(url: str) -> None:
    app = Staffa(url)

    stored = await app.enqueue(Shout.new({"text": "hi"}, schedule_in=timedelta(hours=1), tags=["A"]))

    assert stored.id == 1
    assert stored.state == "scheduled"
    assert (stored.queue, stored.priority, stored.tags) == ("shouts", 2, ["a"])
    assert stored.inserted_at is not None
    assert stored.scheduled_at == stored.inserted_at + timedelta(hours=1)
    await app.close()


async def test_twenty_thousand_jobs_are_stored_in_one_call_from_a_generator(url: str) -> None:
    app = Staffa(url)

    stored = await app.enqueue_all(note.new(n) for n in range(20_000))

    assert [one.id for one in stored] == list(range(1, 20_001))
    assert await app.count_jobs() == {"default": {"available": 20_000}}
    assert stored[7].args == {"n": 7}
    await app.close()


async def test_an_empty_iterable_stores_nothing_and_is_no_error(url: str) -> None:
    app = Staffa(url)

    assert await app.enqueue_all([]) == []
    await app.close()


async def test_one_wrong_element_keeps_all_from_being_stored(url: str) -> None:
    app = Staffa(url)

    with pytest.raises(InvalidJob, match=r"jobs\[1\]: expected a Job .*, got: 'not a job'"):
        await app.enqueue_all([note.new(1), "not a job"])  # type: ignore[list-item]  # the point

    assert await app.count_jobs() == {}
    await app.close()


async def test_a_job_that_is_stored_already_is_refused(url: str) -> None:
    app = Staffa(url)
    stored = await app.enqueue(note.new(1))

    with pytest.raises(InvalidJob, match="expected a new job, got: one that is stored already, with id 1"):
        await app.enqueue(stored)
    fresh = note.new(2)
    with pytest.raises(InvalidJob, match="the same object twice"):
        await app.enqueue_all([fresh, fresh])

    await app.close()


async def test_one_object_is_one_row_even_when_it_is_enqueued_twice_at_once(url: str) -> None:
    app = Staffa(url)
    one, others = note.new(1), [note.new(2), note.new(3)]

    answers = await asyncio.gather(
        app.enqueue(one),
        app.enqueue(one),
        app.enqueue_all([*others, one]),
        app.enqueue_all(others),
        return_exceptions=True,
    )

    assert [type(answer) for answer in answers] == [Job, InvalidJob, InvalidJob, list]
    assert "an object that is being stored at this moment" in str(answers[1])
    assert sorted(row.args["n"] for row in await app.list_jobs()) == [1, 2, 3]
    await app.close()


async def test_a_job_whose_storing_was_given_up_may_be_enqueued_again(url: str) -> None:
    app = Staffa(url)
    unsaved = note.new(1)
    first = asyncio.create_task(app.enqueue(unsaved))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)

    assert (await app.enqueue(unsaved)).id is not None
    await app.close()


async def test_a_connection_to_another_database_is_refused_and_nothing_is_stored(
    url: str, tmp_path: Path
) -> None:
    app = Staffa(url)
    other = Staffa(f"sqlite:///{tmp_path / 'other.db'}")
    await app.migrate()
    await other.migrate()
    mine = sqlite3.connect(tmp_path / "other.db", timeout=60)

    with pytest.raises(UnsupportedConnection, match=r"expected conn to be a connection to .*jobs\.db"):
        await app.enqueue(note.new(1), conn=mine)
    mine.commit()
    mine.close()

    assert await other.list_jobs() == await app.list_jobs() == []
    await app.close()
    await other.close()


async def test_a_connection_of_an_unknown_kind_is_refused_with_those_that_are_known(url: str) -> None:
    app = Staffa(url)

    with pytest.raises(
        UnsupportedConnection, match=r"expected conn to be a sqlite3.Connection, got: builtins.object"
    ):
        await app.enqueue(note.new(1), conn=object())

    await app.close()


async def test_a_job_in_a_users_transaction_is_performed_when_it_commits(url: str) -> None:
    path = url.removeprefix("sqlite:///")
    app = Staffa(url, queues={"default": 5})

    async with app:
        mine = sqlite3.connect(path, timeout=60)
        mine.execute("CREATE TABLE orders (id integer PRIMARY KEY)")
        mine.execute("INSERT INTO orders DEFAULT VALUES")
        await app.enqueue(note.new(1), conn=mine)
        assert (await app.count_jobs()) == {}
        mine.commit()
        await eventually(lambda: done == [1])
        mine.close()

    await app.close()


async def test_reading_waits_for_nobody_who_writes(url: str) -> None:
    app = Staffa(f"{url}?busy_timeout=120", queues={"default": 5})

    async with app:
        mine = sqlite3.connect(url.removeprefix("sqlite:///"), timeout=60, isolation_level=None)
        mine.execute("BEGIN IMMEDIATE")
        await app.enqueue(note.new(1), conn=mine)
        app._producers["default"].wake()  # its claim waits for the lock
        await asyncio.sleep(0)

        async with asyncio.timeout(60):  # half of what the claim would wait
            assert await app.list_jobs() == []
            assert await app.get_job(1) is None
        mine.execute("COMMIT")
        mine.close()
        await eventually(lambda: done == [1])


async def test_after_a_rollback_the_same_job_can_be_enqueued_again(url: str) -> None:
    app = Staffa(url)
    await app.migrate()
    mine = sqlite3.connect(url.removeprefix("sqlite:///"), timeout=60)
    unsaved = note.new(1)
    await app.enqueue(unsaved, conn=mine)
    mine.rollback()

    stored = await app.enqueue(unsaved)

    assert [one.id for one in await app.list_jobs()] == [stored.id]
    mine.close()
    await app.close()


async def test_a_job_that_could_not_be_stored_is_as_new_as_before(url: str) -> None:
    path = url.removeprefix("sqlite:///")
    app = Staffa(f"{url}?busy_timeout=0.05")
    await app.list_jobs()
    other = sqlite3.connect(path, timeout=60, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    unsaved = note.new(1)

    with pytest.raises(DatabaseUnavailable):
        await app.enqueue(unsaved)
    other.execute("ROLLBACK")
    other.close()

    assert unsaved.id is None
    assert (await app.enqueue(unsaved)).id == 1
    await app.close()


# Looking and changing.


async def test_jobs_are_listed_newest_first_by_state_queue_and_worker(url: str) -> None:
    app = Staffa(url)
    await app.enqueue_all([note.new(1), Shout.new({"text": "a"}), note.using(schedule_in=60).new(2)])

    assert [one.id for one in await app.list_jobs()] == [3, 2, 1]
    assert [one.id for one in await app.list_jobs(state="scheduled")] == [3]
    assert [one.id for one in await app.list_jobs(worker=Shout)] == [2]
    assert [
        one.id for one in await app.list_jobs(queue=["default", "shouts"], state=["available"], limit=1)
    ] == [2]
    await app.close()


async def test_filters_that_cannot_match_are_refused(url: str) -> None:
    app = Staffa(url)

    with pytest.raises(InvalidOption, match=r"expected state to be one of suspended, .*, got: 'done'"):
        await app.list_jobs(state="done")
    with pytest.raises(InvalidOption, match="expected queue to be one value, or a list that is not empty"):
        await app.list_jobs(queue=[])
    with pytest.raises(InvalidOption, match="expected limit to be a positive integer, got: 0"):
        await app.list_jobs(limit=0)
    with pytest.raises(InvalidOption, match="expected id to be a job's id"):
        await app.get_job("7")  # type: ignore[arg-type]  # the point

    await app.close()


async def test_a_discarded_job_is_retried_with_one_more_attempt(url: str) -> None:
    app = Staffa(url, queues={"default": 5})
    stored = await app.enqueue(Job(worker="app.note", args={"wrong": 1}, max_attempts=1))

    async with app:
        await eventually(lambda: _in_state(app, stored, "discarded"))
        retried = await app.retry_job(stored.id or 0)
        assert retried is not None
        assert (retried.state, retried.max_attempts) == ("available", 2)
        again = await eventually(lambda: _in_state(app, stored, "discarded"))

    assert [failure.attempt for failure in again.errors] == [1, 2]
    await app.close()


async def test_verbs_about_a_job_that_does_not_exist_give_none(url: str) -> None:
    app = Staffa(url)

    assert await app.get_job(99) is None
    assert await app.cancel_job(99) is None
    assert await app.retry_job(99) is None
    await app.close()


async def test_running_queues_of_every_node_are_listed(url: str) -> None:
    app = Staffa(url, queues={"default": 5, "mail": 2}, node="web.1")

    async with app:
        infos = await app.list_queues()

    assert [(info.queue, info.node, info.limit, info.alive) for info in infos] == [
        ("default", "web.1", 5, True),
        ("mail", "web.1", 2, True),
    ]
    assert datetime.now(UTC) - infos[0].started_at < timedelta(minutes=1)
    await app.close()


# Tables.


async def test_the_embedded_table_is_made_by_whichever_verb_comes_first(url: str) -> None:
    app = Staffa(url)

    assert (await app.migration_status()).version == 0
    assert await app.list_jobs() == []
    assert (await app.migration_status()).current
    await app.close()


async def test_a_table_newer_than_the_code_is_refused_and_left_alone__case_66(url: str) -> None:
    app = Staffa(url, queues={"default": 1})
    await app.migrate()
    await app.close()
    connection = sqlite3.connect(url.removeprefix("sqlite:///"), timeout=60)
    connection.execute("INSERT INTO staffa_migrations (version, name) VALUES (99, 'from the future')")
    connection.commit()
    connection.close()

    with pytest.raises(SchemaError, match="newer than this code"):
        await app.enqueue(note.new(1))
    with pytest.raises(SchemaError, match="newer than this code"):
        await app.start()

    assert not app.running
    await app.close()


async def test_a_foreign_table_of_the_same_name_is_not_touched(url: str) -> None:
    connection = sqlite3.connect(url.removeprefix("sqlite:///"), timeout=60)
    connection.execute("CREATE TABLE oban_jobs (id integer PRIMARY KEY)")
    connection.close()
    app = Staffa(url)

    with pytest.raises(SchemaError, match="a table oban_jobs that Staffa did not make"):
        await app.enqueue(note.new(1))

    await app.close()


# Loops, threads, forks.


def test_an_instance_serves_one_event_loop_after_another__case_73(url: str) -> None:
    app = Staffa(url)

    for n in range(3):
        asyncio.run(_enqueue(app, n))

    assert len(asyncio.run(app.list_jobs())) == 3
    asyncio.run(app.close())


def test_jobs_enqueued_from_another_threads_loop_wake_the_running_instance_at_once(url: str) -> None:
    app = Staffa(url, queues={"default": 5}, stage_interval=3600)

    async def run() -> None:
        async with app:
            await asyncio.sleep(0)
            thread = threading.Thread(target=lambda: asyncio.run(_enqueue(app, 1)))
            thread.start()
            await eventually(lambda: done == [1])
            thread.join()
        await app.close()

    asyncio.run(run())


def test_a_second_instance_of_the_process_wakes_the_first_one(url: str) -> None:
    running = Staffa(url, queues={"default": 5}, stage_interval=3600)
    enqueueing = Staffa(url)

    async def run() -> None:
        async with running:
            await enqueueing.enqueue(note.new(1))
            await eventually(lambda: done == [1])
        await running.close()
        await enqueueing.close()

    asyncio.run(run())


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_opens_everything_anew__case_73(url: str) -> None:
    app = Staffa(url)
    asyncio.run(_enqueue(app, 1))

    child = os.fork()
    if child == 0:
        status = 1
        try:
            asyncio.run(_enqueue(app, 2))
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0

    asyncio.run(_enqueue(app, 3))
    assert sorted(one.args["n"] for one in asyncio.run(app.list_jobs())) == [1, 2, 3]
    asyncio.run(app.close())


# Running.


async def test_an_instance_without_queues_stages_but_performs_nothing(url: str) -> None:
    app = Staffa(url)

    async with app:
        await note.enqueue(1)
        assert app.running

    assert await app.count_jobs() == {"default": {"available": 1}}
    await app.close()


async def test_a_scheduled_job_is_staged_and_performed_when_it_is_due(url: str) -> None:
    app = Staffa(url, queues={"default": 5}, stage_interval=0.02)

    async with app:
        await app.enqueue_all([note.using(schedule_in=0.1).new(1), note.using(schedule_in=3600).new(2)])
        await eventually(lambda: done == [1])

    assert await app.count_jobs() == {"default": {"completed": 1, "scheduled": 1}}
    await app.close()


async def test_a_start_that_fails_leaves_nothing_running(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    app = Staffa(url, queues={"default": 5}, plugins=[Failing()])

    with pytest.raises(RuntimeError, match="cannot start"):
        await app.start()

    assert not app.running
    assert not [one for one in threading.enumerate() if one.name.startswith("staffa heartbeat")]
    await app.close()


class Failing(Plugin):
    async def opened(self) -> None:
        raise RuntimeError("cannot start")


async def test_after_a_start_that_failed_another_one_is_a_new_try(tmp_path: Path) -> None:
    folder = tmp_path / "later"
    app = Staffa(f"sqlite:///{folder / 'jobs.db'}", queues={"default": 5})
    for _ in range(2):
        with pytest.raises(DatabaseError, match="there is no folder"):
            await app.start()

    folder.mkdir()
    async with app:
        await note.enqueue(1)
        await eventually(lambda: done == [1])


async def test_after_a_start_that_was_cancelled_another_one_is_a_new_try(url: str) -> None:
    app = Staffa(url, queues={"default": 5})
    for _ in range(3):
        start = asyncio.create_task(app.start())
        await asyncio.sleep(0)  # it has begun now
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start

    await app.start()  # waits until the one that was given up is undone
    assert app.running
    await app.close()


async def test_a_shared_start_goes_on_while_anybody_waits_for_it(url: str) -> None:
    app = Staffa(url, queues={"default": 5})
    first, second = asyncio.create_task(app.start()), asyncio.create_task(app.start())
    await asyncio.sleep(0)  # they have begun now

    first.cancel()
    await second

    assert first.cancelled()
    assert app.running
    await app.close()


async def test_a_start_that_everybody_has_given_up_is_undone(url: str) -> None:
    app = Staffa(url, queues={"default": 5})
    starts = [asyncio.create_task(app.start()) for _ in range(2)]
    await asyncio.sleep(0)  # they have begun now

    for start in starts:
        start.cancel()
    await asyncio.wait(starts)
    await app.stop()

    assert not app.running
    assert await app.list_queues() == []
    await app.close()


async def test_a_stop_that_is_cancelled_while_it_waits_for_a_start_leaves_the_start_alone(url: str) -> None:
    app = Staffa(url, queues={"default": 5})
    start = asyncio.create_task(app.start())
    await asyncio.sleep(0)  # it has begun now
    stop = asyncio.create_task(app.stop())
    await asyncio.sleep(0)  # it waits now
    stop.cancel()

    await start
    assert app.running
    await app.close()


async def test_default_plugins_run_and_are_replaced_by_class(url: str) -> None:
    keep = Pruner(max_age=60)

    assert [type(one) for one in Staffa(url).plugins] == [Lifeline, Pruner]
    assert [one for one in Staffa(url, plugins=[keep]).plugins if isinstance(one, Pruner)] == [keep]
    assert Staffa(url, plugins=False).plugins == []


async def test_a_plugins_tick_is_told_to_telemetry_with_what_it_returned(url: str) -> None:
    heard: list[Mapping[str, Any]] = []
    telemetry.attach("test", lambda name, data: heard.append(data), ["plugin.stop"])

    async with Staffa(url, plugins=[Counting(interval=60)]):
        await eventually(lambda: [data for data in heard if data["plugin"] == "counting"])
    telemetry.detach("test")

    assert next(data for data in heard if data["plugin"] == "counting")["result"] == {"jobs": 0}


class Counting(Plugin):
    async def tick(self) -> dict[str, int]:
        counts = await self.runtime.run(self.runtime.engine.count_jobs())
        return {"jobs": sum(counts.values())}


async def test_old_jobs_are_pruned_in_small_steps_and_young_ones_stay(url: str) -> None:
    app = Staffa(
        url, queues={"default": 50}, plugins=[Pruner(max_age={"completed": 0.001}, interval=0.01, limit=7)]
    )

    async with app:
        await app.enqueue_all(
            [*(note.new(n) for n in range(50)), Job(worker="app.note", args={"x": 1}, max_attempts=1)]
        )
        await eventually(lambda: _counts(app, {"discarded": 1}))

    await app.close()


async def test_the_clock_of_the_engine_can_be_set_by_tests(url: str) -> None:
    app = Staffa(url)
    runtime = app._runtime()
    runtime.engine.now = lambda: "2026-01-01 00:00:00.000000"

    stored = await app.enqueue(note.using(schedule_in=1.5).new(1))

    assert stored.scheduled_at == datetime(2026, 1, 1, 0, 0, 1, 500_000, tzinfo=UTC)
    await app.close()


@pytest.mark.parametrize("off", [timedelta(days=1), timedelta(days=-1)], ids=["fast", "slow"])
async def test_every_decision_is_made_by_the_databases_clock_however_wrong_ours_is__case_49(
    url: str, off: timedelta
) -> None:
    lifeline = Lifeline(interval=0.01)
    app = Staffa(url, queues={"default": 5}, stage_interval=0.02, plugins=[lifeline])
    app._runtime().engine.now = lambda: clock.to_text(clock.now() + off)

    async with app:
        await hold.enqueue()
        later = await app.enqueue(note.using(schedule_in=3600).new(2))
        await app.enqueue(note.using(schedule_in=0.1).new(1))
        await eventually(lambda: done == [1] and held)
        assert await lifeline.tick() == {}, "who holds a job lives"
        assert [queue.alive for queue in await app.list_queues()] == [True]
        held[0].set()
        await eventually(lambda: _counts(app, {"completed": 2, "scheduled": 1}))

    assert later.scheduled_at is not None
    assert timedelta(minutes=50) < later.scheduled_at - (clock.now() + off) <= timedelta(hours=1)
    await app.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queues": {"default": 0}}, "queue 'default': expected limit to be a positive integer, got: 0"),
        ({"queues": {"default": True}}, "expected limit to be a positive integer, got: True"),
        (
            {"queues": {"default": {"limit": 1, "pause": True}}},
            "unknown option 'pause', did you mean 'paused'",
        ),
        ({"queues": {"": 1}}, "keys are names of 1 to 127 characters"),
        ({"node": "two words"}, "without white space"),
        ({"stage_interval": 0}, "expected stage_interval to be seconds or a timedelta, positive, got: 0"),
        ({"grace_period": -1}, "expected grace_period to be seconds or a timedelta, zero or more, got: -1"),
        ({"prefix": "private"}, "expected prefix to be None on SQLite"),
        ({"plugins": ["pruner"]}, "expected plugins to be a list of Plugin instances"),
        ({"url": "jobs.db"}, "expected url to be one like sqlite:///jobs.db"),
    ],
)
def test_bad_options_are_refused_with_their_name_and_what_was_expected(
    options: dict[str, Any], message: str, url: str
) -> None:
    said: dict[str, Any] = {"url": url, **options}

    with pytest.raises(InvalidOption, match=message):
        Staffa(**said)


@pytest.mark.parametrize(
    ("misspelt", "meant"), [("queue", "queues"), ("plugin", "plugins"), ("stage_intervall", "stage_interval")]
)
def test_a_misspelt_option_is_refused_with_the_one_that_was_meant(
    url: str, misspelt: str, meant: str
) -> None:
    said: dict[str, Any] = {misspelt: None}

    with pytest.raises(InvalidOption, match=f"unknown option '{misspelt}', did you mean '{meant}'?"):
        Staffa(url, **said)


async def test_an_instance_in_use_cannot_be_configured_again(url: str) -> None:
    app = Staffa(url)
    app.configure(queues="mail=3")
    assert app.config.queues["mail"].limit == 3
    await app.list_jobs()

    with pytest.raises(InvalidOption, match="after it has been used"):
        app.configure(queues="mail=4")

    await app.close()


async def test_threads_of_the_runner_are_reused_and_end_with_the_instance(url: str) -> None:
    runner = ThreadRunner("test")
    results: list[int] = []

    for n in range(50):
        runner.submit(partial(int, n), results.append)
    await eventually(lambda: len(results) == 50)
    runner.close()

    assert sorted(results) == list(range(50))
    await eventually(lambda: runner.threads == 0)


async def _enqueue(app: Staffa, n: int) -> None:
    await app.enqueue(note.new(n))


async def _in_state(app: Staffa, stored: Job, state: str) -> Job | None:
    row = await app.get_job(stored.id or 0)
    return row if row is not None and row.state == state else None


async def _counts(app: Staffa, expected: dict[str, int]) -> bool:
    return (await app.count_jobs()).get("default", {}) == expected


async def test_two_starts_at_once_start_it_once(url: str) -> None:
    app = Staffa(url, queues={"default": 5})

    await asyncio.gather(app.start(), app.start())

    assert len(await app.list_queues()) == 1
    await app.stop()
    assert await app.list_queues() == []
    await app.close()


async def test_an_inner_block_leaves_the_outer_one_running(url: str) -> None:
    app = Staffa(url, queues={"default": 5})

    async with app:
        async with app:
            pass
        await note.enqueue(1)
        await eventually(lambda: done == [1])

    assert not app.running


async def test_a_stop_goes_on_to_its_end_when_its_caller_is_cancelled(url: str) -> None:
    app = Staffa(url, queues={"default": 5}, grace_period=300)
    await app.start()
    await hold.enqueue()
    await eventually(lambda: held)

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(app.stop(), 0.05)

    assert len(await app.list_queues()) == 1, "the heartbeat lasts as long as the job"
    held[0].set()
    await app.stop()
    assert await app.list_queues() == []
    assert (await app.count_jobs())["default"] == {"completed": 1}
    await app.close()


def test_a_loop_closed_without_a_stop_does_not_keep_the_next_one_from_running(url: str) -> None:
    app = Staffa(url, queues={"default": 5})

    loop = asyncio.new_event_loop()
    loop.run_until_complete(app.start())
    heartbeat = next(one for one in threading.enumerate() if one.name.startswith("staffa heartbeat"))
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()

    async def run() -> None:
        async with app:
            await note.enqueue(1)
            await eventually(lambda: done == [1])
            await eventually(lambda: not heartbeat.is_alive())

    asyncio.run(run())


async def test_a_service_whose_task_was_cancelled_by_a_job_begins_anew__case_43(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = Staffa(url, queues={"default": 5})

    async with app:
        for task in asyncio.all_tasks():
            if task.get_name().startswith("staffa producer"):
                task.cancel()
        await eventually(lambda: any("begins anew" in record.getMessage() for record in caplog.records))
        await note.enqueue(1)
        await eventually(lambda: done == [1])


async def test_a_job_that_fails_is_said_in_the_log_when_nobody_listens(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = Staffa(url, queues={"default": 5})

    async with app:
        await app.enqueue(Job(worker="app.note", args={"wrong": 1}, max_attempts=1))
        await eventually(
            lambda: any("failed and is discarded: TypeError" in r.getMessage() for r in caplog.records)
        )


@pytest.mark.parametrize("attached", [False, True], ids=["alone", "default logger"])
async def test_whatever_goes_wrong_with_a_job_is_logged_once(
    url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, attached: bool
) -> None:
    monkeypatch.setattr("staffa.executor.LATE_AFTER", 0.01)
    told: list[str] = []
    telemetry.attach("test", lambda name, _: told.append(name), ["job.exception", "job.late", "job.lost"])
    if attached:
        telemetry.attach_default_logger()
    try:
        async with Staffa(url, queues={"default": 5}, grace_period=0, plugins=False) as app:
            await app.enqueue(Job(worker="app.note", args={"wrong": 1}, max_attempts=1))
            late = await slow.enqueue()
            await eventually(lambda: {"job.exception", "job.late"} <= set(told))
            await app.cancel_job(late.id or 0)
            await hold.enqueue()
            await eventually(lambda: held)
            gate.set()
            await eventually(lambda: "job.lost" in told)
    finally:
        telemetry.detach("test")
        telemetry.detach_default_logger()

    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    for phrase, event in [
        ("failed and is discarded", "job.exception "),
        ("runs past its timeout", "job.late "),
        ("its claim was gone", "job.lost "),
        ("were put back", "queue.shutdown "),
    ]:
        said = (
            [line for line in warnings if phrase in line],
            [line for line in warnings if line.startswith(event)],
        )
        assert [len(lines) for lines in said] == ([0, 1] if attached else [1, 0]), warnings


def test_running_without_queues_is_refused(url: str) -> None:
    with pytest.raises(InvalidOption, match="expected queues to run, got none"):
        Staffa(url).run()


gate = threading.Event()


@job(name="app.slow", timeout=0.01)
def slow() -> None:
    gate.wait(60)


held: list[asyncio.Event] = []


@job(name="app.hold")
async def hold() -> None:
    held.append(asyncio.Event())
    await held[-1].wait()
