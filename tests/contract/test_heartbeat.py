"""Producers say that they live, learn what executes under them, and leave without orphaning anything."""

from collections.abc import Mapping
from typing import Any

from staffa.engine import Ack, Executing
from tests.support import Claimer, Clock, Store, completed, released


async def test_the_first_beat_makes_the_producers_row(store: Store, clock: Clock) -> None:
    producer = store.new_producer('it\'s "mail"', node="höst.1", name="shop")
    producer.beat = producer.beat._replace(meta={"limit": 10, "paused": False, "unknown": ["a.B'c"]})

    assert await producer.heartbeat() == []

    [row] = await store.run(store.engine.producers(25))
    assert row == (
        *(producer.uuid, "shop", "höst.1", 'it\'s "mail"'),
        *({"limit": 10, "paused": False, "unknown": ["a.B'c"]}, clock(), clock(), True),
    )


async def test_later_beats_refresh_it(store: Store, producer: Claimer, clock: Clock) -> None:
    await producer.heartbeat()
    started = clock()
    clock.advance(5)
    producer.beat = producer.beat._replace(meta={"limit": 3})

    await producer.heartbeat()

    [row] = await store.run(store.engine.producers(25))
    assert (row.meta, row.started_at, row.updated_at) == ({"limit": 3}, started, clock())


async def test_one_beat_refreshes_all_producers_of_the_node(store: Store, clock: Clock) -> None:
    producers = [store.new_producer(queue) for queue in ("a", "b", "c")]
    for _ in range(2):
        await store.run(store.engine.heartbeat([one.beat for one in producers]))
        clock.advance(5)

    rows = await store.run(store.engine.producers(25))

    assert [(row.queue, row.uuid) for row in rows] == [(one.beat.queue, one.uuid) for one in producers]


async def test_a_producer_whose_meta_is_no_object_is_listed_without_any_and_hides_no_other(
    store: Store, producer: Claimer, odd_meta: Mapping[str, Any]
) -> None:
    other = store.new_producer("mail", node="node-9")
    other.beat = other.beat._replace(meta={"limit": 3})
    await producer.heartbeat()
    await other.heartbeat()
    await store.sql(
        "UPDATE {producers} SET meta = {json :meta} WHERE uuid = :uuid", uuid=producer.uuid, **odd_meta
    )

    rows = await store.run(store.engine.producers(25))

    assert {row.uuid: row.meta for row in rows} == {producer.uuid: {}, other.uuid: {"limit": 3}}


async def test_beating_for_nobody_is_fine(store: Store) -> None:
    assert (await store.run(store.engine.heartbeat([]))).executing == []
    assert await store.run(store.engine.producers(25)) == []


async def test_a_producer_is_alive_until_its_beat_is_stale(
    store: Store, producer: Claimer, clock: Clock
) -> None:
    await producer.heartbeat()

    alive: list[bool] = []
    for step in (0, 24.999999, 0.000001, 0.000001):
        clock.advance(step)
        alive += [row.alive for row in await store.run(store.engine.producers(25))]

    assert alive == [True, True, True, False]


async def test_a_beat_tells_what_executes_under_each_of_the_producers_and_under_nobody_else(
    store: Store, clock: Clock
) -> None:
    mail, reports = store.new_producer("mail"), store.new_producer("reports")
    stranger = store.new_producer("mail", node="node-2")
    for queue in ("mail", "mail", "reports", "mail", "mail"):
        await store.insert(queue=queue)
    first, done = await mail.claim(demand=2)
    await mail.ack(completed(done))
    [report] = await reports.claim()
    await stranger.claim(demand=1)

    beaten = await store.run(store.engine.heartbeat([mail.beat, reports.beat]))

    assert sorted(beaten.executing) == [
        Executing(first.id, first._token, mail.uuid),
        Executing(report.id, report._token, reports.uuid),
    ]


async def test_case_69_a_claim_whose_answer_was_lost_is_found_and_given_back(
    store: Store, producer: Claimer, clock: Clock
) -> None:
    """Reconciliation: what executes under us and we do not hold goes back, without costing the attempt."""
    id = await store.insert()
    await producer.claim()  # and the answer never came

    [orphan] = await producer.heartbeat()
    lost = await producer.ack(Ack(orphan.id, orphan.token, "release", "available"))

    assert lost == []
    row = await store.row(id)
    assert (row["state"], row["attempt"]) == ("available", 0)
    assert await producer.heartbeat() == []


async def test_a_cancelled_or_deleted_job_no_longer_executes_under_its_producer(
    store: Store, producer: Claimer
) -> None:
    await store.insert_many(3)
    first, second, third = await producer.claim()
    await store.run(store.engine.cancel_job(first.id))
    await store.sql("DELETE FROM {jobs} WHERE id = :id", id=second.id)

    assert [one.id for one in await producer.heartbeat()] == [third.id]


async def test_held_states_tell_where_jobs_stand(store: Store, producer: Claimer) -> None:
    await store.insert_many(4)
    jobs = await producer.claim(demand=3)
    await producer.ack(completed(jobs[1]))
    await store.sql("DELETE FROM {jobs} WHERE id = :id", id=jobs[2].id)
    ids = [1, 2, 3, 4, 4711]

    held = await store.run(store.engine.held_states(ids))

    assert held == {
        1: ("executing", jobs[0]._token, producer.uuid),
        2: ("completed", jobs[1]._token, producer.uuid),
        4: ("available", "", ""),
    }
    assert await store.run(store.engine.held_states([])) == {}


async def test_held_states_of_odd_rows_name_nobody(
    store: Store, producer: Claimer, odd_claimant: Mapping[str, Any]
) -> None:
    id = await store.insert()
    await store.plant_claimed()
    await store.sql("UPDATE {jobs} SET attempted_by = {json_list :by} WHERE id = :id", id=id, **odd_claimant)

    held = await store.run(store.engine.held_states([id, 2]))

    assert held[2][2] == producer.uuid
    assert held[id] == ("available", "", "")


async def test_a_producer_that_stops_deletes_its_row(store: Store, producer: Claimer) -> None:
    other = store.new_producer()
    await store.run(store.engine.heartbeat([producer.beat, other.beat]))
    await store.insert()
    await producer.ack(completed(await producer.claim_one()))

    await producer.retire()

    assert [row.uuid for row in await store.run(store.engine.producers(25))] == [other.uuid]


async def test_a_producer_under_which_something_executes_keeps_its_row(
    store: Store, producer: Claimer
) -> None:
    await producer.heartbeat()
    await store.insert()
    job = await producer.claim_one()

    await producer.retire()
    assert [row.uuid for row in await store.run(store.engine.producers(25))] == [producer.uuid]

    await producer.ack(released(job))
    await producer.retire()
    assert await store.run(store.engine.producers(25)) == []


async def test_retiring_twice_or_nobody_is_fine(store: Store, producer: Claimer) -> None:
    await producer.heartbeat()

    await producer.retire()
    await producer.retire()
    await store.run(store.engine.retire_producers([]))

    assert await store.run(store.engine.producers(25)) == []
