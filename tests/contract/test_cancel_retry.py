"""Cancelling what has not finished, and making jobs available again, one at a time."""

import asyncio

import pytest

from staffa.engine import Lost
from tests.support import Claimer, Clock, Store, completed, failed, out_of_attempts


async def test_a_cancelled_job_keeps_all_but_its_state_and_cancelled_at(
    store: Store, producer: Claimer, clock: Clock
) -> None:
    id = await store.insert(meta={"a": 1})
    await producer.claim_one()
    before = await store.row(id)
    clock.advance(1)

    job = await store.run(store.engine.cancel_job(id))

    assert await store.row(id) == {**before, "state": "cancelled", "cancelled_at": clock()}
    assert job is not None
    assert (job.id, job.state, job.cancelled_at, job.meta, job.errors) == (
        *(id, "cancelled", clock.moment),
        *({"a": 1}, []),
    )


async def test_a_cancelled_job_is_not_claimed(store: Store, producer: Claimer) -> None:
    id = await store.insert()
    await store.run(store.engine.cancel_job(id))

    assert await producer.claim() == []


@pytest.mark.parametrize("verb", ["cancel_job", "retry_job"])
async def test_a_job_that_does_not_exist_is_none(store: Store, verb: str) -> None:
    await store.insert()
    before = await store.snapshot()

    assert await store.run(getattr(store.engine, verb)(4711)) is None

    assert await store.snapshot() == before


async def test_cancelling_twice_keeps_the_first_moment(store: Store, clock: Clock) -> None:
    id = await store.insert()
    assert await store.run(store.engine.cancel_job(id)) is not None
    before = await store.snapshot()
    clock.advance(5)

    assert await store.run(store.engine.cancel_job(id)) is None

    assert await store.snapshot() == before


async def test_of_several_who_cancel_at_once_one_does(store: Store) -> None:
    id = await store.insert()

    answers = await asyncio.gather(*(store.run(store.engine.cancel_job(id)) for _ in range(10)))

    assert sum(job is not None for job in answers) == 1


async def test_a_retried_job_is_due_now_and_its_end_is_forgotten_but_not_its_errors(
    store: Store, producer: Claimer, clock: Clock
) -> None:
    id = await store.insert()
    await producer.ack(failed(await producer.claim_one()))
    await store.run(store.engine.cancel_job(id))
    clock.advance(100)
    before = await store.row(id)

    job = await store.run(store.engine.retry_job(id))

    assert await store.row(id) == {
        **before,
        "state": "available",
        "scheduled_at": clock(),
        "cancelled_at": None,
    }
    assert job is not None
    assert (job.state, job.scheduled_at, job.cancelled_at, len(job.errors)) == (
        *("available", clock.moment),
        *(None, 1),
    )


@pytest.mark.parametrize(("max_attempts", "expected"), [(1, 2), (5, 5)])
async def test_a_retried_job_has_at_least_one_attempt_left(
    store: Store, producer: Claimer, max_attempts: int, expected: int
) -> None:
    id = await store.insert(max_attempts=max_attempts)
    await producer.ack(out_of_attempts(await producer.claim_one()))

    await store.run(store.engine.retry_job(id))

    row = await store.row(id)
    assert (row["attempt"], row["max_attempts"], row["discarded_at"]) == (1, expected, None)
    job = await producer.claim_one()
    assert (job.attempt, len(job.errors)) == (2, 1)


async def test_a_completed_job_can_be_run_again(store: Store, producer: Claimer, clock: Clock) -> None:
    await store.insert()
    first = await producer.claim_one()
    await producer.ack(completed(first))
    clock.advance(1)

    await store.run(store.engine.retry_job(first.id))

    second = await producer.claim_one()
    assert (second.id, second.attempt) == (first.id, 2)
    assert await producer.ack(completed(first)) == [Lost(first.id, "executing")]
    assert await producer.ack(completed(second)) == []


async def test_a_retry_goes_by_priority_and_then_behind_what_waits(
    store: Store, producer: Claimer, clock: Clock
) -> None:
    old = await store.insert(schedule_in=-3600)
    waiting = await store.insert()
    clock.advance(1)

    await store.run(store.engine.retry_job(old))

    assert [job.id for job in await producer.claim()] == [waiting, old]


async def test_a_scheduled_job_can_be_had_at_once(store: Store, producer: Claimer) -> None:
    id = await store.insert(schedule_in=3600)

    await store.run(store.engine.retry_job(id))

    assert (await producer.claim_one()).id == id
