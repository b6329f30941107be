"""Looking at jobs: one, several by filter, and how many there are."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

import pytest

from staffa.engine import JobFilter
from staffa.jobs import JobState
from tests.support import PAST, Claimer, Clock, Store, completed, failed

AT = datetime(2020, 1, 1, tzinfo=UTC)


Where = Mapping[str, list[str]]


async def listed(store: Store, where: Where = MappingProxyType({}), limit: int = 100) -> list[int | None]:
    return [job.id for job in await store.run(store.engine.list_jobs(JobFilter(**where), limit))]


async def test_a_job_comes_back_with_everything_about_it(
    store: Store, producer: Claimer, clock: Clock
) -> None:
    id = await store.insert(
        args={"n": [1, {"m": None}]}, queue="default", priority=2, tags=["a"], meta={"k": "v"}, max_attempts=3
    )
    inserted = clock.moment
    attempted = clock.advance(1)
    job = await producer.claim_one()
    clock.advance(1)
    await producer.ack(failed(job, 10))

    stored = await store.job(id)

    assert (stored.id, stored.state, stored.queue, stored.worker) == (
        id,
        "retryable",
        "default",
        "tests.Worker",
    )
    assert (stored.args, stored.meta, stored.tags) == ({"n": [1, {"m": None}]}, {"k": "v"}, ["a"])
    assert (stored.attempt, stored.max_attempts, stored.priority) == (1, 3, 2)
    assert stored.attempted_by == [producer.beat.node, producer.uuid]
    assert (stored.inserted_at, stored.attempted_at) == (inserted, attempted)
    assert stored.scheduled_at is not None
    assert (stored.scheduled_at - clock.moment).total_seconds() == 10
    assert (stored.completed_at, stored.discarded_at, stored.cancelled_at) == (None, None, None)
    assert [(one.attempt, one.summary) for one in stored.errors] == [(1, "RuntimeError: no")]


@pytest.mark.parametrize("state", ["completed", "discarded", "cancelled"])
async def test_a_finished_job_tells_when_it_ended(store: Store, state: str) -> None:
    id = await store.plant(**{"state": state, f"{state}_at": PAST})

    job = await store.job(id)

    ends = {"completed": job.completed_at, "discarded": job.discarded_at, "cancelled": job.cancelled_at}
    assert ends == {**dict.fromkeys(ends, None), state: AT}


async def test_a_job_that_does_not_exist_is_none(store: Store) -> None:
    assert await store.run(store.engine.get_job(1)) is None
    assert await store.run(store.engine.get_job(2**62)) is None


async def test_jobs_are_listed_the_newest_first_up_to_the_limit(store: Store) -> None:
    ids = await store.insert_many(5)

    assert await listed(store) == ids[::-1]
    assert await listed(store, limit=2) == ids[:2:-1]


async def test_filters_accept_any_of_their_values_and_all_must_agree(store: Store) -> None:
    ids = {
        (state, queue, worker): await store.plant(state=state, queue=queue, worker=worker)
        for state in ("available", "retryable", "completed")
        for queue in ("mail", "Mail", "it's")
        for worker in ("a.B", "a.C")
    }

    def expected(where: Where) -> list[int]:
        names = ("states", "queues", "workers")
        return sorted(
            (
                id
                for key, id in ids.items()
                if all(key[names.index(name)] in said for name, said in where.items())
            ),
            reverse=True,
        )

    wanted: Sequence[Where] = (
        {"states": ["retryable"]},
        {"states": ["available", "completed"]},
        {"queues": ["mail"]},
        {"queues": ["it's", "Mail"]},
        {"workers": ["a.C"]},
        {"states": ["completed"], "queues": ["mail"], "workers": ["a.B", "a.C"]},
        {"queues": ["MAIL"]},
        {"states": []},
    )
    for where in wanted:
        assert await listed(store, where) == expected(where), where


async def test_jobs_are_counted_by_queue_and_state(store: Store, producer: Claimer) -> None:
    assert await store.run(store.engine.count_jobs()) == {}
    await store.insert_many(3)
    await store.insert(queue="Default")
    await store.insert(queue="mail", schedule_in=60)
    await producer.ack(completed((await producer.claim(demand=1))[0]))

    assert await store.run(store.engine.count_jobs()) == {
        ("default", "completed"): 1,
        ("default", "available"): 2,
        ("Default", "available"): 1,
        ("mail", "scheduled"): 1,
    }


async def test_every_state_can_be_read_and_counted(store: Store) -> None:
    for state in JobState:
        await store.plant(state=state)

    assert await store.run(store.engine.count_jobs()) == {("default", state): 1 for state in JobState}
    for state in JobState:
        assert len(await listed(store, {"states": [state]})) == 1


async def test_odd_rows_of_foreign_programs_never_hide_the_rows_around_them(
    store: Store, odd_row: Mapping[str, Any]
) -> None:
    sound = [await store.insert()]
    odd = await store.plant(**odd_row)
    sound.append(await store.insert())

    assert await listed(store) == [sound[1], odd, sound[0]]
    job = await store.job(odd)
    assert job.state == "available"
