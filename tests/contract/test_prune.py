"""Finished jobs are deleted when they are old enough, by the moment at which they finished."""

import pytest

from staffa.jobs import JobState
from tests.support import PAST, Claimer, Clock, Store

FINISHED = ("completed", "discarded", "cancelled")
DAY = 86_400.0


async def finished(store: Store, state: str, at: str, **columns: str) -> int:
    return await store.plant(**{"state": state, "attempt": 1, f"{state}_at": at, **columns})


@pytest.mark.parametrize("state", FINISHED)
async def test_a_job_goes_when_it_has_been_finished_for_longer_than_its_age(
    store: Store, clock: Clock, state: str
) -> None:
    old = await finished(store, state, clock.after(-10.000001))
    young = [await finished(store, state, clock.after(-age)) for age in (10, 9.5, 0)]

    pruned = await store.run(store.engine.prune_jobs({state: 10}, 100))

    assert pruned == {state: 1}
    assert list(await store.snapshot()) == young
    assert old not in young


@pytest.mark.parametrize("state", FINISHED)
async def test_the_age_counts_from_the_end_and_from_no_other_moment(
    store: Store, clock: Clock, state: str
) -> None:
    long = {"scheduled_at": PAST, "inserted_at": PAST, "attempted_at": PAST}
    id = await finished(store, state, clock.after(-1), **long)

    assert await store.run(store.engine.prune_jobs(dict.fromkeys(FINISHED, 60), 100)) == {}
    assert list(await store.snapshot()) == [id]


async def test_each_state_has_its_own_age_and_states_without_one_are_kept(store: Store, clock: Clock) -> None:
    for state in FINISHED:
        for age in (1, 5, 20):
            await finished(store, state, clock.after(-age * DAY))

    pruned = await store.run(store.engine.prune_jobs({"completed": 2 * DAY, "discarded": 10 * DAY}, 100))

    assert pruned == {"completed": 2, "discarded": 1}
    states = await store.states()
    assert {state: states.count(state) for state in FINISHED} == {
        "completed": 1,
        "discarded": 2,
        "cancelled": 3,
    }


async def test_no_more_than_the_limit_of_each_state_the_oldest_first(store: Store, clock: Clock) -> None:
    ids = {
        (state, age): await finished(store, state, clock.after(-age))
        for state in ("completed", "discarded")
        for age in (50, 70, 60, 90, 80)
    }

    pruned = await store.run(store.engine.prune_jobs(dict.fromkeys(FINISHED, 10), 3))

    assert pruned == {"completed": 3, "discarded": 3}
    assert set(await store.snapshot()) == {id for (_, age), id in ids.items() if age in (50, 60)}
    again = [await store.run(store.engine.prune_jobs(dict.fromkeys(FINISHED, 10), 3)) for _ in range(2)]
    assert again == [{"completed": 2, "discarded": 2}, {}]


async def test_what_has_not_finished_is_never_pruned_however_old(store: Store, clock: Clock) -> None:
    everything = dict.fromkeys(("completed_at", "discarded_at", "cancelled_at", "attempted_at"), PAST)
    ids = [await store.plant(state=state, **everything) for state in JobState if state not in FINISHED]

    assert await store.run(store.engine.prune_jobs(dict.fromkeys(FINISHED, 1), 100)) == {}
    assert list(await store.snapshot()) == ids


async def test_a_finished_job_without_a_moment_of_its_end_is_kept(store: Store) -> None:
    for state in FINISHED:
        await store.plant(state=state)

    assert await store.run(store.engine.prune_jobs(dict.fromkeys(FINISHED, 1), 100)) == {}


async def test_an_age_of_a_century_is_fine(store: Store, clock: Clock) -> None:
    await finished(store, "completed", "1920-01-01 00:00:00.000000")
    await finished(store, "completed", "1930-01-01 00:00:00.000000")

    assert await store.run(store.engine.prune_jobs({"completed": 36_525 * DAY}, 100)) == {"completed": 1}


async def test_pruning_nothing_is_fine(store: Store) -> None:
    assert await store.run(store.engine.prune_jobs({}, 100)) == {}


async def test_two_pruners_at_once_delete_each_job_once(store: Store, clock: Clock) -> None:
    for n in range(60):
        await finished(store, "completed", clock.after(-60 - n))

    async def prune(node: Claimer) -> int:
        total = 0
        while pruned := await node.run(store.engine.prune_jobs({"completed": 30}, 7)):
            total += pruned["completed"]
        return total

    assert sum(await store.on_nodes(prune, prune)) == 60
    assert await store.snapshot() == {}
