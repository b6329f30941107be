"""Due jobs become available, the longest due first, each of them once, whoever stages."""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any

from staffa.engine import Staged
from staffa.errors import DatabaseError
from tests.support import Claimer, Clock, Store, failed


async def test_due_jobs_become_available_and_nothing_else_of_them_changes(store: Store, clock: Clock) -> None:
    scheduled = await store.insert(schedule_in=10)
    retryable = await store.plant(state="retryable", attempt=2, scheduled_at=clock.after(10))
    before = {id: await store.row(id) for id in (scheduled, retryable)}
    clock.advance(10)

    staged = await store.run(store.engine.stage_jobs(100, ["default"]))

    assert staged == Staged(2, ["default"], ["default"])
    for id, row in before.items():
        assert await store.row(id) == {**row, "state": "available"}


async def test_a_job_is_due_at_its_very_microsecond_and_not_before(store: Store, clock: Clock) -> None:
    await store.insert(scheduled_at=clock.moment + timedelta(seconds=1))

    clock.advance(0.999999)
    assert await store.run(store.engine.stage_jobs(100, ["default"])) == Staged(0, [], [])
    clock.advance(microseconds=1)
    assert await store.run(store.engine.stage_jobs(100, ["default"])) == Staged(1, ["default"], ["default"])


async def test_a_job_scheduled_in_the_past_is_staged_at_once(store: Store, clock: Clock) -> None:
    await store.insert(schedule_in=-1)

    assert (await store.run(store.engine.stage_jobs(100, []))).staged == 1


async def test_the_longest_due_go_first(store: Store, clock: Clock) -> None:
    ids = {delay: await store.insert(schedule_in=delay) for delay in (5, 1, 4, 2, 3)}
    clock.advance(60)

    order: list[int] = []
    for _ in range(5):
        assert (await store.run(store.engine.stage_jobs(1, []))).staged == 1
        order += [job.id for job in await store.producer.claim()]

    assert order == [ids[delay] for delay in (1, 2, 3, 4, 5)]


async def test_no_more_than_the_limit_are_staged(store: Store, clock: Clock) -> None:
    await store.insert_many(10, schedule_in=-1)

    staged = [(await store.run(store.engine.stage_jobs(4, []))).staged for _ in range(4)]

    assert staged == [4, 4, 2, 0]


async def test_queues_are_reported_whose_jobs_can_be_claimed(store: Store, clock: Clock) -> None:
    await store.insert(queue="waiting")
    await store.insert(queue="Waiting")
    await store.insert(queue="due", schedule_in=-1)
    await store.insert(queue="later", schedule_in=60)
    await store.insert(queue="somebody-elses", schedule_in=-1)
    queues = ["later", "due", "waiting", "empty", 'it\'s "quoted"']

    staged = await store.run(store.engine.stage_jobs(100, queues))

    assert staged == Staged(2, ["due", "somebody-elses"], ["due", "waiting"])


async def test_without_anything_due_available_jobs_are_reported_all_the_same(store: Store) -> None:
    """A lost message is made up for: whoever stages wakes the queues that wait."""
    await store.insert(queue="mail")

    assert await store.run(store.engine.stage_jobs(100, ["mail", "other"])) == Staged(0, [], ["mail"])
    assert await store.run(store.engine.stage_jobs(100, [])) == Staged(0, [], [])


async def test_a_failed_job_comes_back_after_its_backoff(
    store: Store, producer: Claimer, clock: Clock
) -> None:
    await store.insert()
    await producer.ack(failed(await producer.claim_one(), delay=15))

    clock.advance(14.999999)
    assert (await store.run(store.engine.stage_jobs(100, []))).staged == 0
    clock.advance(microseconds=1)
    assert (await store.run(store.engine.stage_jobs(100, []))).staged == 1
    assert (await producer.claim_one()).attempt == 2


async def test_several_stagers_at_once_stage_each_job_once(store: Store) -> None:
    await store.insert_many(300, schedule_in=-5)

    async def stage(producer: Claimer) -> int:
        total = 0
        while staged := (await producer.run(store.engine.stage_jobs(7, []))).staged:
            total += staged
        return total

    totals = await store.on_nodes(stage, stage, stage)

    assert sum(totals) == 300
    assert set(await store.states()) == {"available"}


async def test_stagers_of_one_node_at_once_stage_each_job_once(store: Store) -> None:
    await store.insert_many(50, schedule_in=-5)

    staged = await asyncio.gather(*(store.run(store.engine.stage_jobs(20, [])) for _ in range(8)))

    assert sum(one.staged for one in staged) == 50


async def test_odd_rows_of_foreign_programs_never_stop_the_stager(
    store: Store, odd_row: Mapping[str, Any]
) -> None:
    first = await store.insert(schedule_in=-1)
    await store.plant(**{**odd_row, "state": "retryable"})
    last = await store.insert(schedule_in=-1)

    staged = await store.run(store.engine.stage_jobs(100, ["default"]))

    assert staged.queues == ["default"]
    assert (await store.state(first), await store.state(last)) == ("available", "available")


async def test_a_schedule_that_is_no_moment_never_stops_the_stager(store: Store) -> None:
    with suppress(DatabaseError):
        await store.plant(state="scheduled", scheduled_at="soon")
    id = await store.insert(schedule_in=-1)

    staged = await store.run(store.engine.stage_jobs(100, ["default"]))

    assert staged == Staged(1, ["default"], ["default"])
    assert await store.state(id) == "available"
