"""What only PostgreSQL's engine claims: few statements, messages that commit with the jobs, one clock for all nodes."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, cast

import pytest

from staffa.connections.parameters import numbered
from staffa.engine import Ack, Notice
from staffa.engines import PostgresEngine
from staffa.errors import DatabaseError
from staffa.jobs import Job
from tests.support import (
    PAST,
    Claimer,
    Clock,
    PostgresStore,
    completed,
    entry,
    eventually,
    failed,
    new_job,
    snoozed,
)
from tests.test_statements import FRAGMENTS, POSTGRES, POSTGRES_VERBS, STATEMENTS

CHANNEL = "public.staffa_test"


def notice(*payloads: str) -> Notice:
    return Notice(CHANNEL, payloads)


# One statement.


@pytest.mark.parametrize("unknown", [[], ["tests.Gone"]])
@pytest.mark.parametrize("kinds", ["complete", "complete complete", "complete fail snooze", "fail"])
async def test_acks_and_claim_are_one_statement(
    postgres: PostgresStore, kinds: str, unknown: Sequence[str]
) -> None:
    makes = {"complete": completed, "fail": failed, "snooze": snoozed}
    await postgres.insert_many(5)
    claimed = await postgres.producer.claim(demand=len(kinds.split()))
    acks = [makes[kind](job) for kind, job in zip(kinds.split(), claimed, strict=True)]

    steps = postgres.engine.ack_and_claim(postgres.producer.beat, acks, 10, unknown)
    statements = await postgres.statements_of(steps)

    assert len(statements) == 1
    ends = {"complete": "completed", "fail": "retryable", "snooze": "scheduled"}
    acked = [ends[kind] for kind in kinds.split()]
    assert await postgres.states() == [*acked, *["executing"] * (5 - len(acked))]


async def test_a_refused_ack_costs_one_look_more_and_holds_nothing_up(postgres: PostgresStore) -> None:
    await postgres.insert_many(3)
    gone, sound = await postgres.producer.claim(demand=2)
    await postgres.run(postgres.engine.cancel_job(gone.id))

    claim = await postgres.producer.round_trip([completed(gone), completed(sound)])

    assert [(one.id, one.state) for one in claim.lost] == [(gone.id, "cancelled")]
    assert await postgres.states() == ["cancelled", "completed", "executing"]
    assert len(claim.jobs) == 1


@pytest.mark.parametrize("count", [1, 2, 1_000])
async def test_jobs_and_their_notice_are_one_statement(postgres: PostgresStore, count: int) -> None:
    heard = await postgres.listening(CHANNEL)
    jobs = [new_job() for _ in range(count)]

    statements = await postgres.statements_of(postgres.engine.insert_jobs(jobs, notice("one", "two")))

    assert len(statements) == 1
    await eventually(lambda: len(heard) >= 2)
    assert heard == ["one", "two"]
    assert len(await postgres.snapshot()) == count


async def test_a_beat_is_one_statement(postgres: PostgresStore) -> None:
    beats = [postgres.new_producer(queue).beat for queue in ("a", "b")]

    assert len(await postgres.statements_of(postgres.engine.heartbeat(beats))) == 1


async def test_beyond_a_thousand_all_jobs_are_stored_and_the_notice_is_sent_once(
    postgres: PostgresStore,
) -> None:
    heard = await postgres.listening(CHANNEL)
    jobs = [new_job(args={"n": n}) for n in range(2_001)]

    await postgres.run(postgres.engine.insert_jobs(jobs, notice("once")))
    await postgres.run(postgres.engine.notify(notice("after")))

    await eventually(lambda: "after" in heard)
    assert heard == ["once", "after"]
    assert [job.id for job in jobs] == sorted(await postgres.snapshot())
    assert (await postgres.job(jobs[1_500].id)).args == {"n": 1_500}


@pytest.mark.parametrize("position", [0, 999, 1_000])
async def test_a_thousand_and_one_jobs_are_all_stored_or_none_and_then_nothing_is_heard(
    postgres: PostgresStore, position: int
) -> None:
    heard = await postgres.listening(CHANNEL)
    jobs = [new_job() for _ in range(1_000)]
    jobs.insert(position, refused())

    with pytest.raises(DatabaseError, match="null value"):
        await postgres.run(postgres.engine.insert_jobs(jobs, notice("never")))

    await postgres.run(postgres.engine.notify(notice("after")))
    await eventually(lambda: "after" in heard)
    assert heard == ["after"]
    assert await postgres.snapshot() == {}


async def test_large_jobs_go_in_by_several_statements_and_stay_in_order(postgres: PostgresStore) -> None:
    heard = await postgres.listening(CHANNEL)
    jobs = [new_job(args={"n": n, "text": "x" * 990_000}) for n in range(20)]

    statements = await postgres.statements_of(postgres.engine.insert_jobs(jobs, notice("once")))
    await postgres.run(postgres.engine.notify(notice("after")))

    await eventually(lambda: "after" in heard)
    assert heard == ["once", "after"]
    assert len(statements) == 2
    assert [job.id for job in jobs] == sorted(await postgres.snapshot())
    assert (await postgres.job(jobs[17].id)).args["n"] == 17


def refused() -> Job:
    job = new_job()
    job.worker = cast("str", None)
    return job


# Messages.


def _contains(heard: list[str], payload: str) -> bool:
    return payload in heard


@pytest.mark.parametrize("count", [1, 3, 1_001])
async def test_a_notice_is_heard_when_the_users_transaction_commits_and_only_then(
    postgres: PostgresStore, count: int
) -> None:
    heard = await postgres.listening(CHANNEL)
    conn = await postgres.raw_connection()
    jobs = [new_job() for _ in range(count)]

    for payload, end in (("rolled back", "ROLLBACK"), ("committed", "COMMIT")):
        await conn.execute("BEGIN")
        adopted = postgres.connections.adopt(conn)
        await adopted.run(postgres.engine.insert_jobs(jobs, notice(payload)))
        await postgres.run(postgres.engine.notify(notice(f"before {end}")))
        await eventually(partial(_contains, heard, f"before {end}"))
        await conn.execute(end)

    await eventually(lambda: "committed" in heard)
    assert heard == ["before ROLLBACK", "before COMMIT", "committed"]
    assert len(await postgres.snapshot()) == count


async def test_a_payload_of_any_text_arrives_as_it_was_sent(postgres: PostgresStore) -> None:
    heard = await postgres.listening(CHANNEL)
    payloads = ['{"queue":"it\'s \\"mail\\", 世界"}', "", ":name {spelling} $1 %s", "x" * 7_999]

    await postgres.run(postgres.engine.notify(notice(*payloads)))

    await eventually(lambda: len(heard) == len(payloads))
    assert heard == payloads


# Bad acks.

BAD: dict[str, dict[str, Any]] = {
    "delay beyond every calendar": {"delay": 1e18},
    "delay infinite": {"delay": float("inf")},
    "delay not a number": {"delay": float("nan")},
    "error with U+0000": {"error": '{"at": "x", "attempt": 1, "error": "a\\u0000b"}'},
    "error with half a surrogate": {"error": '{"at": "x", "attempt": 1, "error": "a\\ud800b"}'},
    "error not JSON": {"error": '{"at": oops'},
    "state that does not exist": {"state": "asleep"},
    "token that is no moment": {"token": "yesterday at half past six"},
}


@pytest.mark.parametrize("odd", BAD.values(), ids=BAD)
@pytest.mark.parametrize("alone", [True, False])
async def test_a_bad_ack_fails_the_batch_and_changes_nothing(
    postgres: PostgresStore, producer: Claimer, odd: dict[str, Any], alone: bool
) -> None:
    await postgres.insert_many(3)
    good, bad = await producer.claim(demand=2)
    said: dict[str, Any] = {
        "token": bad._token,
        "state": "retryable",
        "delay": 1.0,
        "error": entry(1, "no"),
        **odd,
    }
    acks = [*([] if alone else [completed(good)]), Ack(bad.id, kind="fail", **said)]
    before = await postgres.snapshot()

    with pytest.raises(DatabaseError):
        await producer.round_trip(acks, demand=1)
    with pytest.raises(DatabaseError):
        await producer.ack(*acks)

    assert await postgres.snapshot() == before
    assert await producer.ack(completed(good), failed(bad)) == []


# The database's clock.


@pytest.mark.parametrize(("gap", "rescued"), [(0, 1), (12, 1), (12.000001, 0), (3_600, 0), (-3_600, 1)])
async def test_a_rescue_does_nothing_when_our_own_last_beat_is_long_ago_by_the_databases_clock(
    postgres: PostgresStore, producer: Claimer, clock: Clock, gap: float, rescued: int
) -> None:
    await producer.heartbeat()
    await postgres.insert()
    await producer.claim()
    clock.advance(3_600 * 2)
    beaten_at = clock.after(-gap)

    found = await postgres.run(postgres.engine.rescue_jobs(25, 10, beaten_at=beaten_at, longest_gap=12))

    assert len(found) == rescued


async def test_by_the_real_clock_a_beat_of_just_now_lets_us_rescue(
    postgres: PostgresStore, producer: Claimer
) -> None:
    dead = postgres.new_producer(node="dead")
    await dead.heartbeat()
    await postgres.insert()
    await dead.claim()
    await postgres.sql("UPDATE {producers} SET updated_at = {moment :then}", then=PAST)

    beaten = await postgres.run(postgres.engine.heartbeat([producer.beat]))
    found = await postgres.run(postgres.engine.rescue_jobs(25, 10, beaten_at=beaten.now, longest_gap=600))

    assert [one.state for one in found] == ["available"]


async def test_the_moment_is_the_databases_whatever_the_zone_of_its_sessions(postgres: PostgresStore) -> None:
    conn = await postgres.raw_connection(
        server_settings={"timezone": "Asia/Kathmandu", "datestyle": "German"}
    )
    adopted = postgres.connections.adopt(conn)

    [job] = await adopted.run(postgres.engine.insert_jobs([new_job(schedule_in=60)]))
    beaten = await adopted.run(postgres.engine.heartbeat([postgres.producer.beat]))

    stored = await postgres.job(job.id)
    assert stored.scheduled_at == job.scheduled_at
    [(off,)] = await postgres.sql(
        "SELECT abs(extract(epoch FROM {moment :now} - timezone('UTC', now()))) < 600", now=beaten.now
    )
    assert off
    assert stored.inserted_at == job.inserted_at


CALENDAR = [("infinity", False), ("-infinity", True), ("4713-01-01 00:00:00 BC", True)]


@pytest.mark.parametrize(("moment", "due"), CALENDAR)
async def test_a_schedule_beyond_every_calendar_is_due_as_it_says_and_holds_nobody_up(
    postgres: PostgresStore, producer: Claimer, moment: str, due: bool
) -> None:
    odd = await postgres.plant(state="scheduled", scheduled_at=moment, inserted_at=moment)
    sound = await postgres.insert(schedule_in=-1)

    await postgres.run(postgres.engine.stage_jobs(10, ["default"]))
    claimed = await producer.claim()

    assert {job.id for job in claimed} == ({odd, sound} if due else {sound})
    assert await producer.ack(*(completed(job) for job in claimed)) == []
    assert (await postgres.job(odd)).state == ("completed" if due else "scheduled")


# Plans.


@pytest.mark.parametrize("verb", POSTGRES_VERBS)
async def test_every_verb_runs_on_the_generic_plan(postgres: PostgresStore, verb: str) -> None:
    conn = await postgres.raw_connection(server_settings={"plan_cache_mode": "force_generic_plan"})
    engine = postgres.engine
    assert isinstance(engine, PostgresEngine)

    for _ in range(2):
        await postgres.connections.adopt(conn).run(POSTGRES_VERBS[verb](engine))


@pytest.mark.parametrize("errors_type", ["jsonb[]", "jsonb"])
@pytest.mark.parametrize("tags_type", ["text[]", "jsonb"])
async def test_every_statement_can_be_prepared(
    postgres: PostgresStore, errors_type: Literal["jsonb[]", "jsonb"], tags_type: Literal["text[]", "jsonb"]
) -> None:
    engine = PostgresEngine()
    engine.dialect.adapt(errors_type, tags_type)
    conn = await postgres.raw_connection()
    if errors_type == "jsonb":
        await conn.execute(
            "ALTER TABLE oban_jobs ALTER errors DROP DEFAULT, ALTER errors TYPE jsonb USING to_jsonb(errors)"
        )
    if tags_type == "jsonb":
        await conn.execute(
            "ALTER TABLE oban_jobs ALTER tags DROP DEFAULT, ALTER tags TYPE jsonb USING to_jsonb(tags)"
        )

    portable = {name: text for name, text in STATEMENTS.items() if name not in FRAGMENTS | {"INSERT_MANY"}}
    for name, template in {**portable, **POSTGRES}.items():
        text, _ = numbered(engine.dialect.render(template))
        assert await conn.prepare(text), name
