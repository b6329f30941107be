"""An outcome is stored if, and only if, its claim still holds; who comes too late changes nothing and is told so."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import pytest

from staffa.engine import Ack, Lost
from staffa.errors import DatabaseError
from staffa.jobs import RunningJob
from tests.support import (
    PAST,
    Claimer,
    Clock,
    Store,
    cancelled,
    completed,
    discarded,
    entry,
    failed,
    out_of_attempts,
    released,
    snoozed,
)

OUTCOMES: dict[str, Callable[[RunningJob], Ack]] = {
    "completed": completed,
    "failed": failed,
    "out_of_attempts": out_of_attempts,
    "discarded": discarded,
    "cancelled": cancelled,
    "snoozed": snoozed,
    "released": released,
}

outcomes = pytest.mark.parametrize("outcome", OUTCOMES.values(), ids=OUTCOMES)


async def claimed(store: Store, producer: Claimer, **options: Any) -> RunningJob:
    await store.insert(**options)
    return await producer.claim_one()


# What each outcome writes.


async def test_a_completed_job_keeps_all_but_its_state_and_completed_at(
    store: Store, producer: Claimer, clock: Clock
) -> None:
    job = await claimed(store, producer)
    before = await store.row(job.id)
    clock.advance(2.5)

    assert await producer.ack(completed(job)) == []

    assert await store.row(job.id) == {**before, "state": "completed", "completed_at": clock()}


@pytest.mark.parametrize("delay", [0.0, 15.25, 0.000001, 86_400 * 30 + 0.123456])
async def test_a_failed_job_is_retryable_after_its_backoff_by_the_databases_clock(
    store: Store, producer: Claimer, clock: Clock, delay: float
) -> None:
    job = await claimed(store, producer)
    before = await store.row(job.id)
    clock.advance(3.000007)

    assert await producer.ack(failed(job, delay)) == []

    row = await store.row(job.id)
    assert json.loads(row.pop("errors")) == [json.loads(entry(1, "RuntimeError: no"))]
    del before["errors"]
    assert row == {**before, "state": "retryable", "scheduled_at": clock.after(delay)}


@pytest.mark.parametrize(
    ("outcome", "state"),
    [(out_of_attempts, "discarded"), (discarded, "discarded"), (cancelled, "cancelled")],
)
async def test_a_final_outcome_notes_its_moment_and_its_reason(
    store: Store, producer: Claimer, clock: Clock, outcome: Callable[[RunningJob], Ack], state: str
) -> None:
    job = await claimed(store, producer)
    before = await store.row(job.id)
    clock.advance(1)
    ack = outcome(job)

    assert await producer.ack(ack) == []

    row = await store.row(job.id)
    assert ack.error is not None
    assert json.loads(row.pop("errors")) == [json.loads(ack.error)]
    del before["errors"]
    assert row == {**before, "state": state, f"{state}_at": clock()}


async def test_a_snooze_gives_the_attempt_back_and_counts_in_meta(
    store: Store, producer: Claimer, clock: Clock
) -> None:
    job = await claimed(store, producer, meta={"source": "web"}, max_attempts=5)
    before = await store.row(job.id)
    clock.advance(1)

    await producer.ack(snoozed(job, 90.5))

    row = await store.row(job.id)
    assert json.loads(row.pop("meta")) == {"source": "web", "snoozed": 1}
    del before["meta"]
    assert row == {**before, "state": "scheduled", "attempt": 0, "scheduled_at": clock.after(90.5)}


async def test_case_27_snoozes_add_up_and_never_cost_an_attempt(
    store: Store, producer: Claimer, clock: Clock
) -> None:
    await store.insert(max_attempts=1)

    for _ in range(25):
        job = await producer.claim_one()
        assert (job.attempt, job.max_attempts) == (1, 1)
        await producer.ack(snoozed(job, 1))
        clock.advance(2)
        await store.run(store.engine.stage_jobs(10, []))

    job = await producer.claim_one()
    assert job.meta == {"snoozed": 25}
    assert await producer.ack(out_of_attempts(job)) == []


@pytest.mark.parametrize("meta", ['{"snoozed":"often"}', '{"snoozed":null}', "null", "[1]", "no JSON", ""])
async def test_a_snooze_counts_from_one_whatever_a_foreign_program_left_in_meta(
    store: Store, producer: Claimer, meta: str
) -> None:
    with suppress(DatabaseError):
        await store.plant(meta=meta)
    await store.insert()
    jobs = await producer.claim()

    assert await producer.ack(*(snoozed(job) for job in jobs)) == []

    rows = [await store.row(job.id) for job in jobs]
    assert [json.loads(row["meta"])["snoozed"] for row in rows] == [1] * len(jobs)


async def test_a_release_gives_the_attempt_back_and_leaves_no_trace(store: Store, producer: Claimer) -> None:
    await store.insert(meta={"a": 1})
    before = await store.row(1)
    job = await producer.claim_one()

    await producer.ack(released(job))

    row = await store.row(job.id)
    touched = {name: row[name] for name in ("attempted_at", "attempted_by")}
    assert row == {**before, **touched}
    assert (await producer.claim_one()).attempt == 1


async def test_a_release_may_say_when(store: Store, producer: Claimer, clock: Clock) -> None:
    job = await claimed(store, producer)

    await producer.ack(Ack(job.id, job._token, "release", "scheduled", delay=1.0))

    row = await store.row(job.id)
    assert (row["state"], row["attempt"], row["scheduled_at"]) == ("scheduled", 0, clock.after(1))


async def test_every_kind_of_outcome_fits_in_one_batch(store: Store, producer: Claimer) -> None:
    await store.insert_many(len(OUTCOMES))
    jobs = await producer.claim(demand=len(OUTCOMES))

    lost = await producer.ack(*(make(job) for make, job in zip(OUTCOMES.values(), jobs, strict=True)))

    assert lost == []
    assert await store.states() == [
        *("completed", "retryable", "discarded", "discarded", "cancelled", "scheduled", "available")
    ]


async def test_a_completed_job_is_stored_alike_whatever_it_is_batched_with(
    store: Store, producer: Claimer, clock: Clock
) -> None:
    await store.insert_many(3)
    one, other, third = await producer.claim()
    clock.advance(1)

    assert await producer.ack(completed(one)) == []
    assert await producer.ack(snoozed(third), completed(other)) == []

    rows = [await store.row(job.id) for job in (one, other)]
    assert {**rows[0], "id": 0} == {**rows[1], "id": 0}


async def test_a_thousand_outcomes_fit_in_one_batch(store: Store, producer: Claimer) -> None:
    await store.insert_many(1_000)
    jobs = await producer.claim(demand=1_000)

    acks = [(completed if job.id % 2 else failed)(job) for job in jobs]

    assert await producer.ack(*acks) == []
    assert {state: (await store.states()).count(state) for state in ("completed", "retryable")} == {
        "completed": 500,
        "retryable": 500,
    }


# Errors.


async def test_errors_are_appended_in_their_order(store: Store, producer: Claimer, clock: Clock) -> None:
    id = await store.insert()

    for attempt in range(1, 5):
        job = await producer.claim_one()
        assert job.attempt == attempt
        await producer.ack(failed(job, 0, f'Error: {attempt} “ü” \\ " \n 🦜'))
        await store.run(store.engine.stage_jobs(10, []))
        clock.advance(1)

    stored = await store.job(id)
    expected = [(n, f'Error: {n} “ü” \\ " \n 🦜') for n in range(1, 5)]
    assert [(one.attempt, one.error) for one in stored.errors] == expected


async def test_case_20_the_first_error_and_the_last_19_are_kept(
    store: Store, producer: Claimer, clock: Clock
) -> None:
    id = await store.insert(max_attempts=60)

    for attempt in range(1, 46):
        job = await producer.claim_one()
        assert len(job.errors) == min(attempt - 1, 20)
        await producer.ack(failed(job, 0, f"Error: {attempt}"))
        await store.run(store.engine.stage_jobs(10, []))
        clock.advance(1)

    stored = await store.job(id)
    assert [one.attempt for one in stored.errors] == [1, *range(27, 46)]


async def test_a_bad_ack_fails_the_verb_and_changes_nothing(store: Store, producer: Claimer) -> None:
    await store.insert_many(3)
    good, bad = await producer.claim(demand=2)
    before = await store.snapshot()
    broken = Ack(bad.id, bad._token, "fail", "retryable", 1.0, '{"at": oops')

    with pytest.raises(DatabaseError):
        await producer.round_trip([completed(good), broken], demand=1)

    assert await store.snapshot() == before
    assert await producer.ack(completed(good), failed(bad)) == []


async def test_odd_rows_of_foreign_programs_never_stop_the_acks(
    store: Store, producer: Claimer, odd_row: Mapping[str, Any]
) -> None:
    """The odd ones are acked, or refused where their claim is not ours; the sound ones beside them are stored."""
    acks: list[Ack] = []
    sound: list[int] = []
    odd: list[int] = []
    for make in OUTCOMES.values():
        odd.append(await store.plant_claimed(**{"attempt": 2, **odd_row}))
        acks.append(_with_token(make, odd[-1]))
        sound.append(await store.plant_claimed())
        acks.append(_with_token(make, sound[-1]))

    lost = await producer.ack(*acks)

    foreign = "attempted_by" in odd_row
    assert [one.id for one in lost] == (odd if foreign else [])
    assert "executing" not in [await store.state(id) for id in sound]


def _with_token(make: Callable[[RunningJob], Ack], id: int) -> Ack:
    job = RunningJob.claimed(
        (id, "tests.Foreign", "{}", "{}", "[]", "[]", 1, 20, 0, PAST, PAST, PAST), "default", []
    )
    return make(job)


# The fence.


async def refused(store: Store, producer: Claimer, job: RunningJob, state: str | None) -> None:
    """Every outcome of that claim, by itself and together, changes nothing and is reported."""
    before = await store.snapshot()
    batches: Sequence[Sequence[Ack]] = [[make(job)] for make in OUTCOMES.values()]
    for batch in batches:
        if batch[0].state != state:  # an ack for what the row is already may be a repetition: that is success
            assert await producer.ack(*batch) == [Lost(job.id, state)], batch
        assert await store.snapshot() == before


async def test_the_ack_of_an_earlier_claim_changes_nothing(
    store: Store, producer: Claimer, clock: Clock
) -> None:
    """Case 1: a stalled worker's late ack must not overwrite what its successor does."""
    stale = await claimed(store, producer)
    await producer.ack(released(stale))
    clock.advance(1)
    fresh = await producer.claim_one()

    await refused(store, producer, stale, "executing")

    assert await producer.ack(completed(fresh)) == []
    assert await producer.ack(failed(stale)) == [Lost(stale.id, "completed")]
    assert await producer.ack(completed(stale)) == [Lost(stale.id, "completed")]  # another claim's completion
    assert await store.state(fresh.id) == "completed"


async def test_case_1_a_late_ack_after_a_rescue_changes_nothing(
    store: Store, producer: Claimer, clock: Clock
) -> None:
    stale = await claimed(store, producer)
    await producer.heartbeat()
    clock.advance(26)
    await store.run(store.engine.rescue_jobs(25, 100))

    await refused(store, producer, stale, "available")

    other = store.new_producer(node="node-2")
    fresh = await other.claim_one()
    await refused(store, producer, stale, "executing")
    assert await other.ack(completed(fresh)) == []
    assert await producer.ack(failed(stale)) == [Lost(stale.id, "completed")]


async def test_case_2_a_token_from_before_a_snooze_cannot_ack(
    store: Store, producer: Claimer, clock: Clock
) -> None:
    """The snooze gave the attempt back, so that both claims have the same number."""
    before = await claimed(store, producer)
    await producer.ack(snoozed(before, 1))
    clock.advance(2)
    await store.run(store.engine.stage_jobs(10, []))
    after = await producer.claim_one()
    assert after.attempt == before.attempt

    await refused(store, producer, before, "executing")

    assert await producer.ack(completed(after)) == []


async def test_case_2_a_token_from_before_a_snooze_cannot_ack_the_snoozed_job(
    store: Store, producer: Claimer
) -> None:
    job = await claimed(store, producer)
    await producer.ack(snoozed(job))

    await refused(store, producer, job, "scheduled")


@pytest.mark.parametrize("retried", [False, True])
async def test_case_4_and_77_cancelled_wins_over_a_late_ack(
    store: Store, producer: Claimer, retried: bool
) -> None:
    """A cancel leaves the token as it is: the fence has to ask for the state too."""
    job = await claimed(store, producer)
    await store.run(store.engine.cancel_job(job.id))
    if retried:
        await store.run(store.engine.retry_job(job.id))

    await refused(store, producer, job, "available" if retried else "cancelled")


async def test_case_4_a_completed_job_cannot_be_cancelled_any_more(store: Store, producer: Claimer) -> None:
    job = await claimed(store, producer)
    await producer.ack(completed(job))

    assert await store.run(store.engine.cancel_job(job.id)) is None
    assert await store.state(job.id) == "completed"


async def test_the_ack_of_a_deleted_job_is_reported(store: Store, producer: Claimer) -> None:
    job = await claimed(store, producer)
    await store.sql("DELETE FROM {jobs} WHERE id = :id", id=job.id)

    await refused(store, producer, job, None)


async def test_another_producer_cannot_ack_with_the_same_token(
    store: Store, producer: Claimer, clock: Clock
) -> None:
    """Two producers may claim in the same microsecond; the uuid tells them apart."""
    job = await claimed(store, producer)

    other = store.new_producer()

    await refused(store, other, job, "executing")

    assert await producer.ack(completed(job)) == []
    assert await other.ack(completed(job)) == [Lost(job.id, "completed")]  # and cannot take it for its own


async def test_the_same_uuid_under_another_nodes_name_cannot_ack(store: Store, producer: Claimer) -> None:
    job = await claimed(store, producer)
    other = store.new_producer(node="node-2")
    other.beat = other.beat._replace(uuid=producer.uuid)

    assert await other.ack(completed(job)) == [Lost(job.id, "executing")]


async def test_one_refused_ack_holds_no_other(store: Store, producer: Claimer) -> None:
    await store.insert_many(4)
    first, gone, cancelled_one, last = await producer.claim()
    await store.sql("DELETE FROM {jobs} WHERE id = :id", id=gone.id)
    await store.run(store.engine.cancel_job(cancelled_one.id))

    lost = await producer.ack(completed(first), completed(gone), completed(cancelled_one), completed(last))

    assert sorted(lost) == [Lost(gone.id, None), Lost(cancelled_one.id, "cancelled")]
    assert await store.states() == ["completed", "cancelled", "completed"]


@outcomes
async def test_an_ack_repeated_after_an_unknown_outcome_is_success(
    store: Store, producer: Claimer, clock: Clock, outcome: Callable[[RunningJob], Ack]
) -> None:
    ack = outcome(await claimed(store, producer))
    await producer.ack(ack)
    stored = await store.snapshot()
    clock.advance(1)

    assert await producer.ack(ack) == []

    assert await store.snapshot() == stored


@outcomes
async def test_a_repeated_ack_never_disturbs_the_next_claim(
    store: Store, producer: Claimer, clock: Clock, outcome: Callable[[RunningJob], Ack]
) -> None:
    job = await claimed(store, producer)
    await producer.ack(outcome(job))
    clock.advance(3600)
    await store.run(store.engine.stage_jobs(10, []))
    await store.run(store.engine.retry_job(job.id))
    await producer.claim_one()
    before = await store.snapshot()

    assert await producer.ack(outcome(job)) == [Lost(job.id, "executing")]

    assert await store.snapshot() == before


@pytest.mark.parametrize("stale_first", [True, False])
async def test_a_stale_ack_in_the_same_batch_does_not_displace_the_good_one(
    store: Store, producer: Claimer, clock: Clock, stale_first: bool
) -> None:
    stale = await claimed(store, producer)
    await producer.ack(released(stale))
    clock.advance(1)
    good = await producer.claim_one()
    acks = [completed(stale), completed(good)]

    await producer.ack(*(acks if stale_first else reversed(acks)))

    assert await store.state(good.id) == "completed"


async def test_acking_nothing_is_fine(store: Store, producer: Claimer) -> None:
    assert await producer.ack() == []
