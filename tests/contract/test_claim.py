"""A job is claimed by one producer at a time, the most urgent first, and by nobody who cannot run it."""

import asyncio
import json
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from staffa.clock import to_text
from staffa.jobs import RunningJob
from tests.support import Claimer, Clock, Store, completed, new_job, released

ROOT = Path(__file__).parents[2]


async def test_a_claimed_job_is_executing_under_the_token_and_the_uuid_of_the_claim(
    store: Store, producer: Claimer, clock: Clock
) -> None:
    id = await store.insert(args={"n": 1}, meta={"m": 2}, tags=["t"], priority=3, max_attempts=4)
    inserted_at = clock()
    clock.advance(1.000001)
    before = await store.row(id)

    job = await producer.claim_one()

    assert await store.row(id) == {
        **before,
        "state": "executing",
        "attempt": 1,
        "attempted_at": clock(),
        "attempted_by": json.dumps([producer.beat.node, producer.uuid], separators=(",", ":")),
    }
    assert (job.id, job.state, job.queue, job.worker) == (id, "executing", "default", "tests.Worker")
    assert (job.args, job.meta, job.tags, job.errors, job.priority) == ({"n": 1}, {"m": 2}, ["t"], [], 3)
    assert (job.attempt, job.max_attempts, job.attempted_by) == (1, 4, [producer.beat.node, producer.uuid])
    assert (job.attempted_at, job._token) == (clock.moment, clock())
    assert job.inserted_at is not None
    assert to_text(job.inserted_at) == inserted_at


async def test_claims_go_by_priority_then_schedule_then_id(store: Store, producer: Claimer) -> None:
    rows = [(5, 0), (0, 2), (0, 1), (9, 0), (0, 1), (1, 0), (0, 2), (5, 0)]
    ids = {
        await store.plant(priority=priority, scheduled_at=f"2020-01-0{day + 1} 00:00:00.000000"): (
            priority,
            day,
        )
        for priority, day in rows
    }

    claimed = await producer.claim()

    assert [job.id for job in claimed] == sorted(ids, key=lambda id: (ids[id], id))


async def test_the_order_holds_from_claim_to_claim(store: Store, producer: Claimer) -> None:
    ids = {await store.insert(priority=n * 7 % 10): n * 7 % 10 for n in range(30)}

    claimed = [job.id for _ in range(10) for job in await producer.claim(demand=3)]

    assert claimed == sorted(ids, key=lambda id: (ids[id], id))


@pytest.mark.parametrize("demand", [-1, 0])
async def test_without_demand_nothing_is_claimed(store: Store, producer: Claimer, demand: int) -> None:
    await store.insert()

    claim = await producer.round_trip(demand=demand)

    assert claim == ([], [], False)
    assert await store.states() == ["available"]


@pytest.mark.parametrize(
    ("waiting", "demand", "full"), [(5, 3, True), (3, 3, True), (2, 3, False), (0, 3, False)]
)
async def test_no_more_than_demanded_are_claimed_and_full_says_whether_more_may_wait(
    store: Store, producer: Claimer, waiting: int, demand: int, full: bool
) -> None:
    await store.insert_many(waiting)

    claim = await producer.round_trip(demand=demand)

    assert (len(claim.jobs), claim.full) == (min(waiting, demand), full)
    assert (await store.states()).count("executing") == len(claim.jobs)


async def test_only_available_jobs_of_the_queue_are_claimed(store: Store, producer: Claimer) -> None:
    await store.insert(queue="other")
    await store.insert(schedule_in=-10)
    await store.insert(schedule_in=3600)
    id = await store.insert()

    assert [job.id for job in await producer.claim()] == [id]
    assert await producer.claim() == []


async def test_a_job_scheduled_later_but_available_is_claimed_last(store: Store, producer: Claimer) -> None:
    later = await store.plant(scheduled_at="2999-01-01 00:00:00.000000")
    now = await store.insert()

    assert [job.id for job in await producer.claim()] == [now, later]


async def test_acks_and_claim_are_one_round_trip(store: Store, producer: Claimer) -> None:
    await store.insert_many(4)
    first = await producer.claim(demand=2)

    claim = await producer.round_trip([completed(job) for job in first], demand=2)

    assert claim.lost == []
    assert await store.states() == ["completed", "completed", "executing", "executing"]
    assert {job.id for job in claim.jobs}.isdisjoint(job.id for job in first)


@pytest.mark.requires("acks_before_it_claims")
async def test_a_job_that_is_given_back_can_be_claimed_in_the_same_round_trip(
    store: Store, producer: Claimer
) -> None:
    await store.insert()
    job = await producer.claim_one()

    claim = await producer.round_trip([released(job)])

    assert [one.id for one in claim.jobs] == [job.id]
    assert claim.jobs[0]._token != job._token


# Rows that cannot run.


async def test_exhausted_rows_are_discarded_by_the_claim(
    store: Store, producer: Claimer, clock: Clock
) -> None:
    exhausted = await store.plant(attempt=3, max_attempts=3)

    claim = await producer.round_trip()

    row = await store.row(exhausted)
    assert claim.jobs == []
    assert (row["state"], row["discarded_at"], row["attempt"]) == ("discarded", clock(), 3)


async def test_exhausted_rows_never_hide_those_behind_them(store: Store, producer: Claimer) -> None:
    for _ in range(7):
        await store.plant(attempt=20, max_attempts=20)
    good = await store.insert()

    claims = [await producer.round_trip(demand=3) for _ in range(3)]

    assert [claim.full for claim in claims] == [True, True, False]
    assert [job.id for claim in claims for job in claim.jobs] == [good]


async def test_case_64_workers_that_the_node_does_not_know_are_left(store: Store, producer: Claimer) -> None:
    ids = [await store.insert(worker=name) for name in ("a.Known", "b.Gone", "a.Known", "c.'Odd\"", "b.gone")]
    before = await store.snapshot()

    claimed = await producer.claim(unknown=["b.Gone", "c.'Odd\""])

    assert [job.id for job in claimed] == [ids[0], ids[2], ids[4]]
    after = await store.snapshot()
    assert [after[id] == before[id] for id in ids] == [False, True, False, True, False]


async def test_unknown_workers_do_not_hide_those_behind_them(store: Store, producer: Claimer) -> None:
    await store.insert_many(20, worker="b.Gone")
    known = await store.insert(worker="a.Known")

    claim = await producer.round_trip(demand=2, unknown=["b.Gone"])

    assert [job.id for job in claim.jobs] == [known]
    assert not claim.full


async def test_odd_rows_of_foreign_programs_never_stop_the_claim(
    store: Store, producer: Claimer, odd_row: Mapping[str, Any]
) -> None:
    first = await store.insert()
    await store.plant(**odd_row)
    last = await store.insert()

    claimed = await producer.claim()

    assert {first, last} <= {job.id for job in claimed}
    assert "available" not in await store.states()


# Several at once.


async def drain(producer: Claimer, demand: int) -> list[RunningJob]:
    """Claim until nothing is left; each claim completes what the one before it brought."""
    mine: list[RunningJob] = []
    jobs = await producer.claim(demand)
    while jobs:
        mine += jobs
        claim = await producer.round_trip([completed(job) for job in jobs], demand)
        assert claim.lost == []
        assert len(claim.jobs) <= demand
        jobs = claim.jobs
    return mine


async def test_two_producers_never_claim_the_same_job(store: Store) -> None:
    ids = await store.insert_many(600)

    claimed = await store.on_nodes(*[partial(drain, demand=7)] * 2)

    assert sorted(job.id for jobs in claimed for job in jobs) == ids
    assert set(await store.states()) == {"completed"}


async def test_case_10_eight_claimers_at_once_never_get_more_than_they_ask_for(store: Store) -> None:
    ids = await store.insert_many(400)

    claimed = await store.on_nodes(*[partial(drain, demand=3)] * 8)

    assert sorted(job.id for jobs in claimed for job in jobs) == ids
    assert all(job.attempt == 1 for jobs in claimed for job in jobs)


async def test_many_claims_at_once_over_one_nodes_connections_are_disjoint(store: Store) -> None:
    ids = await store.insert_many(200)
    producers = [store.new_producer(node=f"node-{n}") for n in range(40)]

    claims = await asyncio.gather(*(producer.claim(demand=5) for producer in producers))

    assert sorted(job.id for jobs in claims for job in jobs) == ids


async def processes_claim(store: Store, count: int) -> None:
    ids = await store.insert_many(count)
    command = (sys.executable, "-m", "tests.support.drain", store.url)

    children = [
        await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
        for _ in range(2)
    ]
    outputs = [(await child.communicate())[0] for child in children]

    claimed = [json.loads(output) for output in outputs]
    assert sorted(claimed[0] + claimed[1]) == ids
    assert set(await store.states()) == {"completed"}


async def test_case_11_two_processes_run_every_job_once(store: Store) -> None:
    await processes_claim(store, 1_000)


@pytest.mark.long
async def test_case_11_two_processes_run_every_one_of_10000_jobs_once(store: Store) -> None:
    await processes_claim(store, 10_000)


@pytest.mark.parametrize("rounds", [25, pytest.param(2_000, marks=pytest.mark.long)])
async def test_case_15_six_writers_at_once_never_see_a_locked_database(store: Store, rounds: int) -> None:
    async def write(producer: Claimer) -> int:
        done = 0
        for n in range(rounds):
            jobs = [new_job(schedule_in=-1 if n % 2 else None) for _ in range(3)]
            await producer.run(store.engine.insert_jobs(jobs))
            await producer.run(store.engine.stage_jobs(10, ["default"]))
            claimed = await producer.claim(demand=3)
            await producer.heartbeat()
            await producer.ack(*(completed(job) for job in claimed))
            done += len(claimed)
        return done

    done = await store.on_nodes(*[write] * 6)

    assert (await store.states()).count("completed") == sum(done)


async def test_case_21_ids_beyond_32_bits_are_fine(store: Store, producer: Claimer) -> None:
    big = [2**31 + 7, 2**53 + 1, 2**62]
    for id in big:
        await store.plant(id=id)

    jobs = await producer.claim()
    first, second, third = sorted(jobs, key=lambda job: job.id)
    lost = [*await producer.ack(completed(first), completed(second)), *await producer.ack(released(third))]

    assert [job.id for job in (first, second, third)] == big
    assert lost == []
    assert await store.states() == ["completed", "completed", "available"]


async def test_two_claims_in_the_same_second_have_different_tokens(
    store: Store, producer: Claimer, clock: Clock
) -> None:
    """Case 3: a fence with the precision of a second would let the older claim's ack through."""
    await store.insert()
    old = await producer.claim_one()
    await producer.ack(released(old))
    clock.advance(microseconds=1)

    new = await producer.claim_one()

    assert new._token != old._token
    assert [lost.id for lost in await producer.ack(completed(old))] == [old.id]
    assert await producer.ack(completed(new)) == []
