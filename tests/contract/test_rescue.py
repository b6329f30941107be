"""The jobs of dead producers are taken back; only a heartbeat that is there and stale proves death."""

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

from staffa.engine import Rescued
from staffa.errors import DatabaseError
from staffa.jobs import JobFailure
from staffa.steps import Steps
from tests.support import PAST, Claimer, Clock, PostgresStore, Store, completed, eventually, failed

STALE = 25.0


async def rescue(store: Store, limit: int = 100) -> list[Rescued]:
    return await store.run(store.engine.rescue_jobs(STALE, limit))


async def producers(store: Store) -> list[str]:
    return [row.uuid for row in await store.run(store.engine.producers(STALE))]


async def test_the_jobs_of_a_dead_producer_are_available_again(
    store: Store, producer: Claimer, clock: Clock
) -> None:
    await producer.heartbeat()
    id = await store.insert(meta={"a": 1}, queue="default")
    await producer.claim_one()
    before = await store.row(id)
    clock.advance(STALE + 0.000001)

    rescued = await rescue(store)

    assert rescued == [Rescued(id, "default", "available")]
    row = await store.row(id)
    assert json.loads(row.pop("meta")) == {"a": 1, "rescued": 1}
    del before["meta"]
    assert row == {**before, "state": "available"}
    assert await producers(store) == []


async def test_a_rescued_job_runs_again_with_its_next_attempt(
    store: Store, producer: Claimer, clock: Clock
) -> None:
    await store.insert()
    for times in range(1, 4):
        dying = store.new_producer(node=f"node-{times}")
        await dying.heartbeat()
        assert (await dying.claim_one()).attempt == times
        clock.advance(STALE + 1)
        await rescue(store)

    job = await producer.claim_one()

    assert (job.attempt, job.meta) == (4, {"rescued": 3})


async def test_case_5_a_job_that_takes_long_is_left_alone_while_its_producers_heart_beats(
    store: Store, producer: Claimer, clock: Clock
) -> None:
    await store.insert()
    job = await producer.claim_one()

    for _ in range(2_000):
        clock.advance(STALE * 40)
    await producer.heartbeat()
    clock.advance(STALE)

    assert await rescue(store) == []
    assert await producer.ack(completed(job)) == []


async def test_case_70_a_missing_producer_row_proves_nothing(
    store: Store, producer: Claimer, clock: Clock
) -> None:
    await store.insert()
    job = await producer.claim_one()
    await store.sql("DELETE FROM {producers}")
    clock.advance(STALE * 1_000)

    assert await rescue(store) == []

    assert await producer.ack(completed(job)) == []


async def test_a_claim_that_hung_until_its_producer_was_buried_does_not_come_true(
    postgres: PostgresStore, producer: Claimer
) -> None:
    """The node was killed, but its claim waits on in the server for a lock, as does the rescue; then both go on."""
    for _ in range(5):
        await postgres.sql("DELETE FROM {jobs}")
        await producer.heartbeat()
        id = await postgres.insert()
        other = postgres.new_connections()
        async with holding(postgres, "LOCK TABLE oban_jobs IN SHARE ROW EXCLUSIVE MODE"):
            claim = asyncio.create_task(other.run(postgres.engine.ack_and_claim(producer.beat, [], 10)))
            await eventually(lambda: waiting_for_locks(postgres, 1))
            await postgres.sql("UPDATE {producers} SET updated_at = {moment :then}", then=PAST)
            rescuer = asyncio.create_task(rescue(postgres))
            await eventually(lambda: waiting_for_locks(postgres, 2))
        await asyncio.gather(claim, rescuer)

        state = await postgres.state(id)
        rows = await postgres.sql("SELECT uuid FROM {producers}")
        assert (state, rows) in [("available", []), ("executing", [(producer.uuid,)])]


async def test_a_producer_without_a_row_claims_nothing(postgres: PostgresStore, producer: Claimer) -> None:
    await producer.heartbeat()
    await postgres.insert()
    await postgres.sql("DELETE FROM {producers}")

    assert await producer.claim() == []

    await producer.heartbeat()
    assert len(await producer.claim()) == 1


async def test_a_producers_row_that_somebody_holds_is_passed_by(
    postgres: PostgresStore, producer: Claimer
) -> None:
    """Its heartbeat waits for the same lock, and must not be called dead for that."""
    await postgres.insert()
    await producer.claim_one()
    await postgres.sql("UPDATE {producers} SET updated_at = {moment :then}", then=PAST)

    async with holding(postgres, "SELECT 1 FROM staffa_producers FOR UPDATE"):
        assert await rescue(postgres) == []

    assert len(await rescue(postgres)) == 1


@asynccontextmanager
async def holding(store: PostgresStore, text: str) -> AsyncGenerator[None, None]:
    """A session that holds what the statement locks, until the block ends."""
    connection = await store.raw_connection()
    async with connection.transaction():
        await connection.execute(text)
        yield


async def waiting_for_locks(store: PostgresStore, count: int) -> bool:
    text = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    return (await store.sql(text)) == [(count,)]


async def test_case_7_only_the_dead_producers_jobs_are_taken(
    store: Store, producer: Claimer, clock: Clock
) -> None:
    dead = store.new_producer(node="node-2")
    await dead.heartbeat()
    await store.insert_many(6)
    theirs = await dead.claim(demand=3)
    ours = await producer.claim(demand=3)
    clock.advance(STALE + 1)
    await producer.heartbeat()

    rescued = await rescue(store)

    assert sorted(one.id for one in rescued) == sorted(job.id for job in theirs)
    assert await producers(store) == [producer.uuid]
    assert await producer.ack(*(completed(job) for job in ours)) == []


async def test_a_producer_that_beats_again_before_the_rescue_keeps_its_jobs(
    store: Store, producer: Claimer, clock: Clock
) -> None:
    await producer.heartbeat()
    await store.insert()
    job = await producer.claim_one()
    clock.advance(STALE * 2)
    await producer.heartbeat()

    assert await rescue(store) == []
    assert await producer.ack(completed(job)) == []


async def test_a_producer_that_beats_between_the_look_and_the_rescue_keeps_its_jobs(
    store: Store, producer: Claimer, clock: Clock
) -> None:
    idle = store.new_producer()
    await store.run(store.engine.heartbeat([producer.beat, idle.beat]))
    await store.insert()
    job = await producer.claim_one()
    clock.advance(STALE + 1)

    def late_beat() -> Steps[list[Rescued]]:
        rescue = store.engine.rescue_jobs(STALE, 100)
        rows = yield next(rescue)
        yield from store.engine.heartbeat([producer.beat, idle.beat])
        try:
            while True:
                rows = yield rescue.send(rows)
        except StopIteration as stop:
            rescued: list[Rescued] = stop.value
        return rescued

    assert await store.run(late_beat()) == []

    assert sorted(await producers(store)) == sorted([producer.uuid, idle.uuid])
    assert await producer.ack(completed(job)) == []


async def test_a_producer_that_was_buried_alive_beats_on_and_claims_again(
    store: Store, producer: Claimer, clock: Clock
) -> None:
    await producer.heartbeat()
    await store.insert()
    await producer.claim_one()
    clock.advance(STALE + 1)
    await rescue(store)

    assert await producer.heartbeat() == []

    assert await producers(store) == [producer.uuid]
    assert (await producer.claim_one()).attempt == 2


async def test_exhausted_jobs_are_discarded(store: Store, producer: Claimer, clock: Clock) -> None:
    await producer.heartbeat()
    id = await store.insert(max_attempts=1)
    await producer.claim_one()
    clock.advance(STALE + 1)

    assert await rescue(store) == [Rescued(id, "default", "discarded")]

    row = await store.row(id)
    assert (row["state"], row["discarded_at"], row["attempt"]) == ("discarded", clock(), 1)
    assert json.loads(row["meta"]) == {"rescued": 1}


async def test_a_job_discarded_by_a_rescue_tells_in_its_errors_why(
    store: Store, producer: Claimer, clock: Clock
) -> None:
    await producer.heartbeat()
    id = await store.insert(max_attempts=2)
    await producer.ack(failed(await producer.claim_one(), 0))
    clock.advance(1)
    await store.run(store.engine.stage_jobs(10, []))
    await producer.claim_one()
    clock.advance(STALE, microseconds=7)

    assert await rescue(store) == [Rescued(id, "default", "discarded")]

    job = await store.job(id)
    assert [one.attempt for one in job.errors] == [1, 2]
    assert job.errors[1] == JobFailure(
        clock.moment, 2, "the node died during this attempt, which was the last one"
    )
    raw = json.loads((await store.row(id))["errors"])[1]
    assert raw["at"] == clock().replace(" ", "T") + "Z"


async def test_a_rescued_job_that_runs_again_gets_no_error(
    store: Store, producer: Claimer, clock: Clock
) -> None:
    await producer.heartbeat()
    id = await store.insert()
    await producer.claim_one()
    clock.advance(STALE + 1)

    await rescue(store)

    assert (await store.job(id)).errors == []


async def test_a_rescue_that_discards_copes_with_any_errors_and_attempts_of_foreign_programs(
    store: Store, producer: Claimer, clock: Clock
) -> None:
    await producer.heartbeat()
    await store.plant_claimed(max_attempts=1)
    for columns in (
        {"errors": "{"},
        {"errors": b"\x00"},
        {"errors": "7"},
        {"attempt": b"x"},
        {"attempt": "x"},
    ):
        with suppress(DatabaseError):
            await store.plant_claimed(**{"max_attempts": 1, **columns})
    clock.advance(STALE + 1)

    rescued = await rescue(store)

    assert {one.state for one in rescued} == {"discarded"}
    assert await store.sql("SELECT id FROM {jobs} WHERE state = 'executing'") == []


async def test_no_more_than_the_limit_at_once_and_the_row_stays_until_nothing_executes_under_it(
    store: Store, producer: Claimer, clock: Clock
) -> None:
    await producer.heartbeat()
    await store.insert_many(25)
    await producer.claim(demand=25)
    clock.advance(STALE + 1)

    rounds = [(len(await rescue(store, limit=10)), len(await producers(store))) for _ in range(4)]

    assert rounds == [(10, 1), (10, 1), (5, 0), (0, 0)]


async def test_the_limit_holds_for_each_dead_producer(store: Store, clock: Clock) -> None:
    for node in ("node-1", "node-2", "node-3"):
        dead = store.new_producer(node=node)
        await dead.heartbeat()
        await store.insert_many(4)
        await dead.claim(demand=4)
    clock.advance(STALE + 1)

    assert len(await rescue(store, limit=3)) == 9
    assert len(await rescue(store, limit=3)) == 3
    assert await producers(store) == []


async def test_a_dead_producer_that_held_nothing_is_forgotten(
    store: Store, producer: Claimer, clock: Clock
) -> None:
    await producer.heartbeat()
    clock.advance(STALE + 1)

    assert await rescue(store) == []
    assert await producers(store) == []


async def test_two_producers_of_the_same_node_are_told_apart_by_their_uuid(
    store: Store, producer: Claimer, clock: Clock
) -> None:
    """A node restarted under its old name must not keep its dead predecessor's jobs from being rescued."""
    await producer.heartbeat()
    await store.insert()
    await producer.claim_one()
    clock.advance(STALE + 1)
    successor = store.new_producer()
    assert successor.beat.node == producer.beat.node
    await successor.heartbeat()

    assert len(await rescue(store)) == 1
    assert await producers(store) == [successor.uuid]


async def test_jobs_that_finished_or_were_cancelled_are_left(
    store: Store, producer: Claimer, clock: Clock
) -> None:
    await producer.heartbeat()
    await store.insert_many(2)
    first, second = await producer.claim()
    await producer.ack(completed(first))
    await store.run(store.engine.cancel_job(second.id))
    before = await store.snapshot()
    clock.advance(STALE + 1)

    assert await rescue(store) == []
    assert await store.snapshot() == before


async def test_several_rescuers_at_once_rescue_each_job_once(
    store: Store, producer: Claimer, clock: Clock
) -> None:
    await producer.heartbeat()
    ids = await store.insert_many(120)
    await producer.claim(demand=120)
    clock.advance(STALE + 1)

    async def rescuer(node: Claimer) -> list[int]:
        mine: list[int] = []
        for _ in range(200):
            rescued = await node.run(store.engine.rescue_jobs(STALE, 7))
            mine += [one.id for one in rescued]
            if not rescued and not await node.run(store.engine.producers(STALE)):
                break
        return mine

    rescued = await store.on_nodes(rescuer, rescuer, rescuer)

    assert sorted(id for mine in rescued for id in mine) == ids
    metas = await store.sql("SELECT DISTINCT {text meta} FROM {jobs}")
    assert [json.loads(meta) for (meta,) in metas] == [{"rescued": 1}]


async def test_odd_rows_of_foreign_programs_never_stop_the_rescue(
    store: Store, producer: Claimer, clock: Clock, odd_row: Mapping[str, Any]
) -> None:
    await producer.heartbeat()
    sound = await store.plant_claimed()
    await store.plant_claimed(**odd_row)
    clock.advance(STALE + 1)

    rescued = await rescue(store)

    assert Rescued(sound, "default", "available") in rescued
    assert await producers(store) == []
