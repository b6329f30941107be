"""The whole table of transitions, walked: what it lists happens, and nothing else does.

Every verb, towards every state that it may move to, meets a job in each of the eight states. Jobs in the
states that it lists move there, and only the columns that belong to the move are written; any other job,
and every job around it, stays as it was, byte for byte.
"""

from collections.abc import Awaitable, Callable, Mapping

import pytest

from staffa.engine import Ack
from staffa.jobs import TRANSITIONS, JobState
from tests.support import PAST, Clock, Store, entry

FUTURE = "2999-01-01 00:00:00.000000"
STALE = 25.0
EXHAUSTED = {("claim", "discarded"), ("rescue", "discarded")}

Walk = Callable[[Store, int, str], Awaitable[object]]


async def stage(store: Store, id: int, target: str) -> None:
    await store.run(store.engine.stage_jobs(100, ["default"]))


async def claim(store: Store, id: int, target: str) -> None:
    await store.producer.claim(demand=100)


async def rescue(store: Store, id: int, target: str) -> None:
    await store.sql("UPDATE {producers} SET updated_at = {moment :then}", then=PAST)
    await store.run(store.engine.rescue_jobs(STALE, 100))


async def cancel(store: Store, id: int, target: str) -> None:
    await store.run(store.engine.cancel_job(id))


async def retry(store: Store, id: int, target: str) -> None:
    await store.run(store.engine.retry_job(id))


def ack(**said: object) -> Walk:
    async def walk(store: Store, id: int, target: str) -> None:
        one = Ack(id, PAST, state=target, **said)  # type: ignore[arg-type]
        await store.producer.ack(one)

    return walk


ERROR = entry(1, "Error: no")

VERBS: Mapping[str, Walk] = {
    "stage": stage,
    "claim": claim,
    "complete": ack(kind="complete"),
    "fail": ack(kind="fail", delay=15.0, error=ERROR),
    "discard": ack(kind="discard", error=ERROR),
    "snooze": ack(kind="snooze", delay=60.0),
    "release": ack(kind="release"),
    "rescue": rescue,
    "cancel": cancel,
    "retry": retry,
}

# The columns that each move writes, besides the state.
WRITTEN: Mapping[tuple[str, str], set[str]] = {
    ("stage", "available"): set(),
    ("claim", "executing"): {"attempt", "attempted_at", "attempted_by"},
    ("claim", "discarded"): {"attempted_at", "attempted_by", "discarded_at"},
    ("complete", "completed"): {"completed_at"},
    ("fail", "retryable"): {"errors", "scheduled_at"},
    ("fail", "discarded"): {"errors", "scheduled_at", "discarded_at"},
    ("discard", "discarded"): {"errors", "discarded_at"},
    ("snooze", "scheduled"): {"attempt", "meta", "scheduled_at"},
    ("release", "available"): {"attempt"},
    ("release", "scheduled"): {"attempt"},
    ("rescue", "available"): {"meta"},
    ("rescue", "discarded"): {"errors", "meta", "discarded_at"},
    ("cancel", "cancelled"): {"cancelled_at"},
    ("retry", "available"): {"scheduled_at", "completed_at", "discarded_at", "cancelled_at"},
}

MOVES = [(verb, str(target)) for verb, (_, targets) in TRANSITIONS.items() for target in sorted(targets)]


def test_the_walk_covers_the_table() -> None:
    assert set(VERBS) == set(TRANSITIONS)
    assert set(WRITTEN) == set(MOVES)


@pytest.mark.parametrize("state", list(JobState))
@pytest.mark.parametrize(("verb", "target"), MOVES, ids=[f"{verb}-to-{target}" for verb, target in MOVES])
async def test_a_verb_moves_exactly_the_states_that_the_table_lists(
    store: Store, clock: Clock, verb: str, target: str, state: JobState
) -> None:
    await store.producer.heartbeat()
    await plant_bystanders(store)
    exhausted = {"max_attempts": 1} if (verb, target) in EXHAUSTED else {}
    id = await store.plant_claimed(state, **ended(state), **exhausted)
    row, before = await store.row(id), await store.snapshot()

    await VERBS[verb](store, id, target)

    after = await store.snapshot()
    if state in TRANSITIONS[verb][0]:
        now = await store.row(id)
        assert now["state"] == target
        changed = {name for name in row if now[name] != row[name]} - {"state"}
        assert changed <= WRITTEN[verb, target]
        del before[id], after[id]
    assert after == before


async def plant_bystanders(store: Store) -> None:
    """Jobs in every state that none of the verbs is about: another queue, another producer, not due."""
    other = store.new_producer("other", node="node-2")
    for state in JobState:
        await store.plant_claimed(state, other, queue="other", scheduled_at=FUTURE, **ended(state))


def ended(state: JobState) -> dict[str, str]:
    finished = ("completed", "discarded", "cancelled")
    return {f"{state}_at": PAST} if state in finished else {}
