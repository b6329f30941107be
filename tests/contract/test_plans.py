"""How the database finds its rows in the statements that run all the time, on a table with rows of every state.

A claim walks the index of what is available, in its order; an ack looks rows up by their ids and by nothing
else; what asks for the few due, running or old rows finds them by the index of just those.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from staffa.engine import Ack, JobFilter
from staffa.steps import Steps
from tests.support import PAST, Plan, PostgresStore, Store, entry

COUNT, LONG_COUNT = 10_000, 1_000_000

Check = Callable[[Store], Awaitable[None]]


async def plans_of(store: Store, steps: Steps[Any]) -> list[Plan]:
    """Run steps; the plans of those of their statements that concern jobs."""
    statements = await store.statements_of(steps)
    return [await store.plan(one) for one in statements if "oban_jobs" in one.text]


def assert_found_by(store: Store, plans: Sequence[Plan], *purposes: str) -> None:
    """Rows of jobs are found by the indexes for these purposes (or by their ids), and the table is never read whole."""
    texts = "\n\n".join(plan.text for plan in plans)
    found = set[str]().union(*(plan.indexes for plan in plans))
    for purpose in purposes:
        serving = {store.indexes.get(purpose, purpose), *store.serving.get(purpose, ())}
        assert found & serving, f"nothing is found by {purpose}:\n{texts}"
        found -= serving
    assert not found, f"{found} in:\n{texts}"
    for plan in plans:
        assert not plan.scans, plan.text


async def a_claim_walks_the_index_of_what_is_available_in_its_order(store: Store) -> None:
    producer = store.new_producer("queue-1")

    for unknown in ([], ["tests.Unknown", "tests.Gone"]):
        [plan] = await plans_of(store, store.engine.ack_and_claim(producer.beat, [], 100, unknown))

        assert_found_by(store, [plan], "PRIMARY KEY", "claim")
        assert not plan.sorts, plan.text


async def acks_and_a_claim_in_one_round_trip_are_found_as_each_by_itself(store: Store) -> None:
    producer = store.new_producer("queue-1")
    complete = Ack(7, PAST, "complete")
    fail = Ack(7, PAST, "fail", "retryable", 5.0, entry(1, "Error"))

    for acks in ([complete], [complete, fail]):
        for unknown in ([], ["tests.Unknown", "tests.Gone"]):
            plans = await plans_of(store, store.engine.ack_and_claim(producer.beat, acks, 100, unknown))

            assert_found_by(store, plans, "PRIMARY KEY", "claim")
            assert not any(plan.sorts for plan in plans), [plan.text for plan in plans]


async def acks_search_by_id_and_by_no_other_index(store: Store) -> None:
    ids = [row[0] for row in await store.sql("SELECT id FROM {jobs} WHERE state = 'executing' LIMIT 50")]
    completes = [Ack(id, PAST, "complete") for id in ids]
    mixed = [*completes, Ack(7, PAST, "fail", "retryable", 5.0, entry(1, "Error"))]
    stale_beside = [*completes, Ack(ids[0], "2021-01-01 00:00:00.000000", "complete")]

    for acks in (completes, mixed, stale_beside):
        plans = await plans_of(store, store.engine.ack_jobs(store.producer.beat, acks))

        assert len(plans) == 2  # the acks, and a look at those that were refused
        for plan in plans:
            assert_found_by(store, [plan], "PRIMARY KEY")


async def the_stagers_look_and_its_work_use_the_index_of_what_is_due(store: Store) -> None:
    steps = store.engine.stage_jobs(1_000, ["queue-1", "queue-2", "empty"])
    pending, stage = await plans_of(store, steps)

    assert_found_by(store, [pending], "due", "claim")
    assert_found_by(store, [stage], "PRIMARY KEY", "due")
    assert not any(plan.sorts for plan in (pending, stage)), (pending.text, stage.text)


async def a_heartbeat_and_a_retirement_find_what_executes_by_its_index(store: Store) -> None:
    beats = [store.new_producer(f"queue-{n}").beat for n in range(5)]
    beating = await plans_of(store, store.engine.heartbeat(beats))
    retiring = await plans_of(store, store.engine.retire_producers(beats))

    for plan in (*beating, *retiring):
        assert_found_by(store, [plan], "executing")


async def a_rescue_finds_the_dead_producers_jobs_by_the_index_of_what_executes(store: Store) -> None:
    await store.producer.heartbeat()
    await store.sql("UPDATE {producers} SET updated_at = {moment :then}", then=PAST)

    rescue, bury = await plans_of(store, store.engine.rescue_jobs(25, 1_000))

    assert_found_by(store, [rescue], "PRIMARY KEY", "executing")
    assert_found_by(store, [bury], "executing")
    assert not any(plan.sorts for plan in (rescue, bury)), (rescue.text, bury.text)


async def a_pruner_finds_old_jobs_of_each_state_by_its_index(store: Store) -> None:
    ages = {"completed": 60.0, "discarded": 60.0, "cancelled": 60.0}

    plans = await plans_of(store, store.engine.prune_jobs(ages, 10))

    assert_found_by(store, plans, "PRIMARY KEY", *ages)
    assert not any(plan.sorts for plan in plans), [plan.text for plan in plans]


async def one_job_is_found_by_its_id(store: Store) -> None:
    engine = store.engine

    for steps in (
        engine.get_job(7),
        engine.cancel_job(7),
        engine.retry_job(7),
        engine.held_states([1, 2, 3]),
    ):
        [plan] = await plans_of(store, steps)

        assert_found_by(store, [plan], "PRIMARY KEY")


async def a_list_is_read_from_its_newest_end_without_sorting(store: Store) -> None:
    [plan] = await plans_of(store, store.engine.list_jobs(JobFilter(), 100))

    assert not plan.sorts, plan.text


CHECKS: tuple[Check, ...] = (
    a_claim_walks_the_index_of_what_is_available_in_its_order,
    acks_search_by_id_and_by_no_other_index,
    acks_and_a_claim_in_one_round_trip_are_found_as_each_by_itself,
    the_stagers_look_and_its_work_use_the_index_of_what_is_due,
    a_heartbeat_and_a_retirement_find_what_executes_by_its_index,
    a_rescue_finds_the_dead_producers_jobs_by_the_index_of_what_executes,
    a_pruner_finds_old_jobs_of_each_state_by_its_index,
    one_job_is_found_by_its_id,
    a_list_is_read_from_its_newest_end_without_sorting,
)


async def test_what_executes_is_passed_once_per_beat_however_many_producers_there_are(store: Store) -> None:
    beats = [store.new_producer(f"queue-{n}").beat for n in range(100)]
    for _ in range(500):
        await store.plant_claimed()

    async def effort(count: int) -> int:
        statements = await store.statements_of(store.engine.heartbeat(beats[:count]))
        [executing] = [one for one in statements if "oban_jobs" in one.text]
        return await store.effort(executing)

    assert await effort(100) < 2 * await effort(1)


@pytest.mark.parametrize("analyzed", [False, True], ids=["no-statistics", "analyzed"])
@pytest.mark.parametrize("check", CHECKS, ids=[check.__name__ for check in CHECKS])
async def test_with_10000_rows(store: Store, check: Check, analyzed: bool) -> None:
    await store.fill(COUNT)
    if analyzed:
        await store.analyze()

    await check(store)


MAIN = "oban_jobs_state_queue_priority_scheduled_at_id_index"
CANCELLED, DISCARDED = "oban_jobs_state_cancelled_at_index", "oban_jobs_state_discarded_at_index"

# Oban's own, and for what each serves as well as ours; the other two are there for filters by args and meta.
OBANS = {
    MAIN: "(state, queue, priority, scheduled_at, id)",
    CANCELLED: "(state, cancelled_at)",
    DISCARDED: "(state, discarded_at)",
    "oban_jobs_args_index": "USING gin (args)",
    "oban_jobs_meta_index": "USING gin (meta)",
}
SERVING = {
    "claim": {MAIN},
    "executing": {MAIN, CANCELLED, DISCARDED},
    "cancelled": {CANCELLED},
    "discarded": {DISCARDED},
}


async def with_obans_indexes(store: PostgresStore, count: int, *, instead: bool) -> None:
    """Beside ours, or, as on a table of Oban's that was taken into use, instead of those that they serve for."""
    await store.fill(count)
    for name, columns in OBANS.items():
        await store.sql(f"CREATE INDEX {name} ON {{jobs}} {columns}")
    if instead:
        for purpose in ("claim", "cancelled", "discarded"):
            await store.sql(f"DROP INDEX {store.indexes[purpose]}")
    store.serving = SERVING

    for analyzed in (False, True):
        if analyzed:
            await store.analyze()
        for check in CHECKS:
            await check(store)


beside_or_instead = pytest.mark.parametrize("instead", [False, True], ids=["beside-ours", "instead-of-ours"])


@beside_or_instead
async def test_with_obans_own_indexes_and_10000_rows(postgres: PostgresStore, instead: bool) -> None:
    await with_obans_indexes(postgres, COUNT, instead=instead)


@pytest.mark.long
@beside_or_instead
async def test_with_obans_own_indexes_and_a_million_rows(postgres: PostgresStore, instead: bool) -> None:
    await with_obans_indexes(postgres, LONG_COUNT, instead=instead)


FUTURE = "2999-01-01 00:00:00.000000"


async def looking_for_nothing_costs_nothing(store: Store) -> None:
    """Many jobs in one queue, many scheduled, many finished, and none of them due, old, or in the queue that asks."""
    await store.sql("UPDATE {jobs} SET queue = 'crowded', scheduled_at = {moment :at}", at=FUTURE)
    for state in ("completed", "discarded", "cancelled"):
        await store.sql(f"UPDATE {{jobs}} SET {state}_at = {{moment :at}} WHERE state = '{state}'", at=FUTURE)
    ages = {"completed": 60.0, "discarded": 60.0, "cancelled": 60.0}

    for analyzed in (False, True):
        if analyzed:
            await store.analyze()
        [pending] = await store.statements_of(store.engine.stage_jobs(1_000, ["queue-1", "empty"]))
        [prunable] = await store.statements_of(store.engine.prune_jobs(ages, 1_000))

        for statement in (pending, prunable):
            plan = await store.plan(statement)
            assert not plan.scans, plan.text
            assert not plan.sorts, plan.text


async def test_looking_for_nothing_among_10000_rows_costs_nothing(store: Store) -> None:
    await store.fill(COUNT)

    await looking_for_nothing_costs_nothing(store)


@pytest.mark.long
async def test_looking_for_nothing_among_a_million_rows_costs_nothing(store: Store) -> None:
    await store.fill(LONG_COUNT)

    await looking_for_nothing_costs_nothing(store)


@pytest.mark.long
async def test_with_a_million_rows(store: Store) -> None:
    await store.fill(LONG_COUNT)

    for check in CHECKS:
        await check(store)
    await store.analyze()
    for check in CHECKS:
        await check(store)
