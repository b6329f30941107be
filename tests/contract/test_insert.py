"""Jobs get in: whole, in order, with the moments that were meant."""

import random
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta, timezone
from typing import cast
from zoneinfo import ZoneInfo

import pytest

from staffa.errors import DatabaseError
from staffa.jobs import Job
from staffa.payload import decode
from tests.support import Claimer, Clock, Store, new_job

MOMENT = datetime(2027, 3, 28, 1, 30, 0, 654_321, tzinfo=UTC)

# A bulk insert may be another statement than a single one: what holds for one must hold for the other.
Insert = Callable[[Store, Job], Awaitable[Job]]


async def alone(store: Store, job: Job) -> Job:
    [stored] = await store.run(store.engine.insert_jobs([job]))
    return stored


async def in_bulk(store: Store, job: Job) -> Job:
    jobs = [new_job(), job, new_job(schedule_in=5)]
    return (await store.run(store.engine.insert_jobs(jobs)))[1]


inserts = pytest.mark.parametrize("insert", [alone, in_bulk])


@inserts
async def test_an_inserted_job_has_its_id_and_its_moments(store: Store, clock: Clock, insert: Insert) -> None:
    job = new_job(args={"to": "ada"})

    stored = await insert(store, job)

    assert stored is job
    row = await store.row(job.id)
    assert (job.inserted_at, job.scheduled_at) == (clock.moment, clock.moment)
    assert (row["inserted_at"], row["scheduled_at"]) == (clock(), clock())


@inserts
async def test_every_option_of_a_job_is_stored(store: Store, clock: Clock, insert: Insert) -> None:
    job = new_job(
        args={"to": "ada"},
        queue="mail",
        max_attempts=7,
        priority=9,
        tags=["Urgent", "b"],
        meta={"source": "web"},
    )

    await insert(store, job)

    assert await store.row(job.id) == {
        "id": job.id,
        "state": "available",
        "queue": "mail",
        "worker": "tests.Worker",
        "args": '{"to":"ada"}',
        "meta": '{"source":"web"}',
        "tags": '["urgent","b"]',
        "errors": "[]",
        "attempt": 0,
        "max_attempts": 7,
        "priority": 9,
        "attempted_by": None,
        "inserted_at": clock(),
        "scheduled_at": clock(),
        "attempted_at": None,
        "completed_at": None,
        "discarded_at": None,
        "cancelled_at": None,
    }


@inserts
async def test_a_job_that_says_nothing_gets_the_defaults(store: Store, insert: Insert) -> None:
    job = await insert(store, new_job())

    stored = await store.job(job.id)
    assert (stored.queue, stored.state, stored.args, stored.meta) == ("default", "available", {}, {})
    assert (stored.attempt, stored.max_attempts, stored.priority, stored.tags) == (0, 20, 0, [])


@inserts
@pytest.mark.parametrize(
    "seconds",
    [
        0,
        1,
        0.000001,
        0.999999,
        1.5,
        3.141593,
        59.876543,
        86_400 * 90 + 0.000001,
        -0.000001,
        -5.25,
        -86_400 * 400,
    ],
)
async def test_schedule_in_is_exact_to_the_microsecond_by_the_databases_clock(
    store: Store, clock: Clock, insert: Insert, seconds: float
) -> None:
    job = await insert(store, new_job(schedule_in=seconds))

    row = await store.row(job.id)
    assert row["state"] == "scheduled"
    assert row["scheduled_at"] == clock.after(seconds)
    assert job.scheduled_at == clock.moment + timedelta(seconds=seconds)


async def test_schedule_in_is_exact_for_any_moment_of_the_clock(store: Store, clock: Clock) -> None:
    chance = random.Random(7)

    for _ in range(100):
        clock.set(datetime(2000, 1, 1, tzinfo=UTC) + timedelta(seconds=chance.uniform(0, 3e9)))
        seconds = round(chance.uniform(-1e6, 1e8), 6)
        id = await store.insert(schedule_in=seconds)

        assert (await store.row(id))["scheduled_at"] == clock.after(seconds), (clock(), seconds)


@inserts
async def test_a_schedule_may_lie_before_1970(store: Store, clock: Clock, insert: Insert) -> None:
    sixty_years = timedelta(days=60 * 365.25, microseconds=1)

    job = await insert(store, new_job(schedule_in=-sixty_years))

    assert (await store.row(job.id))["scheduled_at"] == clock.after(-sixty_years.total_seconds())


@inserts
@pytest.mark.parametrize(
    "moment",
    [
        MOMENT,
        MOMENT.astimezone(ZoneInfo("Europe/Paris")),
        MOMENT.astimezone(ZoneInfo("Australia/Lord_Howe")),
        MOMENT.astimezone(timezone(timedelta(hours=-9, minutes=-30))),
        datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Paris")),
        datetime(1901, 1, 1, 0, 0, 0, 1, tzinfo=UTC),
        datetime(8999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
    ],
    ids=str,
)
async def test_case_50_a_moment_of_any_time_zone_comes_back_as_the_same_moment(
    store: Store, insert: Insert, moment: datetime
) -> None:
    job = await insert(store, new_job(scheduled_at=moment))

    stored = await store.job(job.id)
    assert stored.state == "scheduled"
    assert stored.scheduled_at == moment.astimezone(UTC)
    assert stored.scheduled_at is not None
    assert stored.scheduled_at.utcoffset() == timedelta(0)


ARGS: list[dict[str, object]] = [
    {"text": "Grüße, 世界, 🦜, \u202e, '; DROP TABLE oban_jobs; --, \\, \", \n, \x7f"},
    {"int": [2**63 - 1, -(2**63), 0], "float": [0.1, 1e300, -2.5e-10], "flags": [True, False, None]},
    {"nested": {"a": [{"b": {}}, []]}, "": "empty key", ":name": "{spelling}", "%s": "%d"},
    {"deep": [[[[[[[[[[1]]]]]]]]]]},
    {"long": "ab" * 200_000},
]


@inserts
@pytest.mark.parametrize("args", ARGS, ids=["text", "numbers", "keys", "depth", "length"])
async def test_case_18_args_come_back_as_they_were_given(
    store: Store, insert: Insert, args: dict[str, object]
) -> None:
    job = await insert(store, new_job(args=args, meta=args))

    stored = await store.job(job.id)
    assert (stored.args, stored.meta) == (args, args)


async def test_one_job_and_many_are_stored_alike(store: Store, clock: Clock) -> None:
    def jobs() -> list[Job]:
        return [
            new_job(args={"b": 1, "a": [1.5]}, tags=["x"]),
            new_job(schedule_in=90.000001, priority=3),
            new_job(scheduled_at=MOMENT, queue="mail", max_attempts=1),
        ]

    for job in jobs():
        await store.run(store.engine.insert_jobs([job]))
    await store.run(store.engine.insert_jobs(jobs()))

    rows = [row[1:] for row in (await store.snapshot()).values()]
    assert rows[:3] == rows[3:]


async def test_ids_ascend_in_the_order_of_a_bulk(store: Store) -> None:
    await store.insert()
    jobs = [new_job(args={"n": n}, priority=n % 10) for n in range(500)]

    stored = await store.run(store.engine.insert_jobs(jobs))

    ids = [job.id or 0 for job in stored]
    assert ids == sorted(set(ids))
    found = await store.sql("SELECT id, {text args} FROM {jobs} WHERE id >= :first ORDER BY id", first=ids[0])
    assert [(id, decode(args)) for id, args in found] == [(id, {"n": n}) for n, id in enumerate(ids)]


async def test_ids_of_two_bulks_at_once_belong_to_their_own_jobs(store: Store) -> None:
    async def insert(producer: Claimer) -> list[Job]:
        jobs: list[Job] = []
        for _ in range(5):
            bulk = [new_job(args={"by": producer.uuid, "n": n}) for n in range(40)]
            jobs += await producer.run(store.engine.insert_jobs(bulk))
        return jobs

    everything = await store.on_nodes(insert, insert, insert)

    found = {id: decode(args) for id, args in await store.sql("SELECT id, {text args} FROM {jobs}")}
    assert len(found) == 600
    assert found == {job.id: job.args for jobs in everything for job in jobs}


async def test_twenty_thousand_jobs_go_in_with_one_call(store: Store) -> None:
    ids = await store.insert_many(20_000)

    assert len(ids) == 20_000
    assert await store.sql("SELECT count(*), min(id), max(id) FROM {jobs}") == [(20_000, ids[0], ids[-1])]


async def test_inserting_nothing_is_fine(store: Store) -> None:
    assert await store.run(store.engine.insert_jobs([])) == []
    assert await store.snapshot() == {}


def refused() -> Job:
    """A job that the database refuses, for what a job is checked for when it is made was got round."""
    job = new_job()
    job.worker = cast("str", None)
    return job


@pytest.mark.parametrize("position", [0, 1, 49])
async def test_when_one_of_many_is_refused_none_is_stored(store: Store, position: int) -> None:
    await store.insert()
    before = await store.snapshot()
    jobs = [new_job() for _ in range(49)]
    jobs.insert(position, refused())

    with pytest.raises(DatabaseError):
        await store.run(store.engine.insert_jobs(jobs))

    assert await store.snapshot() == before


@pytest.mark.parametrize("count", [1, 3])
async def test_a_job_that_was_refused_is_as_it_was_and_can_be_mended(store: Store, count: int) -> None:
    jobs: Sequence[Job] = [*(new_job() for _ in range(count - 1)), refused()]

    with pytest.raises(DatabaseError):
        await store.run(store.engine.insert_jobs(jobs))

    for job in jobs:
        assert (job.id, job.inserted_at, job.scheduled_at) == (None, None, None)
    jobs[-1].worker = "tests.Worker"
    await store.run(store.engine.insert_jobs(jobs))
    assert len(await store.snapshot()) == count


async def test_case_71_queues_that_differ_in_case_or_in_a_space_are_different_queues(store: Store) -> None:
    queues = ["mail", "Mail", "MAIL", "a", "a ", " a", "ä", "a\u0308"]
    ids = {queue: await store.insert(queue=queue) for queue in queues}

    claimed = {queue: await store.new_producer(queue).claim() for queue in queues}

    assert {queue: [job.id for job in jobs] for queue, jobs in claimed.items()} == {
        queue: [id] for queue, id in ids.items()
    }


async def test_names_of_127_characters_are_kept_whole(store: Store) -> None:
    id = await store.insert(queue="q" * 127, worker="ü" * 127)

    row = await store.row(id)
    assert (row["queue"], row["worker"]) == ("q" * 127, "ü" * 127)
