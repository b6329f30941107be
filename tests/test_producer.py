"""Producers: claiming, storing outcomes, keeping to the limit, and what they do when the database does not answer."""

import asyncio
import contextvars
import logging
import sqlite3
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from staffa import Job, Queue, RunningJob, Staffa, executor, job
from staffa.engine import Beat
from staffa.producer import Producer
from tests.support import eventually

started: list[int] = []
gate = asyncio.Event()
peak = {"now": 0, "most": 0}


@job(name="producer.note")
async def note(n: int) -> None:
    started.append(n)


@job(name="producer.wait")
async def wait(n: int) -> None:
    started.append(n)
    peak["now"] += 1
    peak["most"] = max(peak["most"], peak["now"])
    try:
        await gate.wait()
    finally:
        peak["now"] -= 1


@job(name="producer.wait_in_thread")
def wait_in_thread(job: RunningJob) -> None:
    started.append(job.id)
    while True:
        job.check_cancelled()
        time.sleep(0.002)


@job(name="producer.fail", max_attempts=1)
async def fail() -> None:
    raise ValueError("no")


@pytest.fixture(autouse=True)
def _fresh() -> None:
    global gate
    gate = asyncio.Event()
    started.clear()
    peak.update(now=0, most=0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


@pytest.fixture
def url(path: Path) -> str:
    return f"sqlite:///{path}"


@pytest.fixture
async def app(url: str) -> AsyncIterator[Staffa]:
    app = Staffa(url, queues={"default": 5}, grace_period=0.2, plugins=False)
    yield app
    await app.close()


def producer_of(app: Staffa) -> Producer:
    return app._producers["default"]


async def states(app: Staffa) -> dict[str, int]:
    return (await app.count_jobs()).get("default", {})


async def test_jobs_enqueued_before_and_after_the_start_are_performed(app: Staffa) -> None:
    await app.enqueue(note.new(1))

    async with app:
        await note.enqueue(2)
        await eventually(lambda: sorted(started) == [1, 2])

    assert await states(app) == {"completed": 2}


async def test_the_limit_is_reached_and_never_exceeded(app: Staffa) -> None:
    await app.enqueue_all(wait.new(n) for n in range(30))

    async with app:
        await eventually(lambda: peak["now"] == 5)
        gate.set()
        await eventually(lambda: len(started) == 30)

    assert peak["most"] == 5


async def test_a_freed_place_is_filled_while_the_other_jobs_go_on(app: Staffa) -> None:
    await app.enqueue_all([*(wait.new(n) for n in range(4)), *(note.new(n) for n in range(100, 120))])

    async with app:
        await eventually(lambda: len([n for n in started if n >= 100]) == 20)
        assert peak["now"] == 4
        gate.set()


async def test_rows_are_performed_by_priority_then_schedule_then_id(url: str) -> None:
    app = Staffa(url, queues={"default": 1}, plugins=False)
    await app.enqueue_all(
        [note.new(1), note.using(priority=5).new(2), note.new(3), note.using(priority=1).new(4)]
    )

    async with app:
        await eventually(lambda: len(started) == 4)

    assert started == [1, 3, 4, 2]
    await app.close()


async def test_a_paused_queue_claims_nothing(url: str) -> None:
    app = Staffa(url, queues={"default": Queue(limit=5, paused=True), "other": 1}, plugins=False)
    await app.enqueue_all([note.new(1), note.using(queue="other").new(2)])

    async with app:
        await eventually(lambda: started == [2])
        assert await states(app) == {"available": 1}

    await app.close()


async def test_an_immediate_ack_is_stored_while_a_round_trip_is_under_way(url: str) -> None:
    app = Staffa(url, queues={"default": Queue(limit=5, ack="immediate")}, plugins=False)
    await app.enqueue_all([note.new(n) for n in range(12)])

    async with app:
        await eventually(lambda: len(started) == 12)
        await eventually(lambda: not producer_of(app).held)

    assert await states(app) == {"completed": 12}
    await app.close()


async def test_outcomes_are_stored_after_the_database_was_locked_for_a_while__case_24(
    url: str, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    app = Staffa(f"{url}?busy_timeout=2", queues={"default": 5}, plugins=False)
    async with app:
        await app.enqueue_all(wait.new(n) for n in range(5))
        await eventually(lambda: peak["now"] == 5)

        other = sqlite3.connect(path, timeout=60, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        gate.set()
        await eventually(lambda: any("locked" in record.getMessage() for record in caplog.records))
        assert len(producer_of(app).held) == 5
        other.execute("ROLLBACK")
        other.close()

        await eventually(lambda: not producer_of(app).held)

    assert await states(app) == {"completed": 5}
    assert len(started) == 5
    await app.close()


async def test_an_outcome_that_cannot_be_stored_fails_alone_and_holds_nobody(
    app: Staffa, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(job: RunningJob, text: str) -> str:
        return "not JSON"

    monkeypatch.setattr(executor, "_entry", broken)

    async with app:
        bad = await fail.enqueue()
        await app.enqueue_all(note.new(n) for n in range(20))
        await eventually(lambda: len(started) == 20)
        await eventually(lambda: not producer_of(app).held)

    assert await states(app) == {"completed": 20, "discarded": 1}
    stored = await app.get_job(bad.id or 0)
    assert stored is not None
    assert "could not be stored" in stored.errors[0].error


async def test_a_job_whose_claim_is_lost_is_not_run_twice_at_once_here__case_8(
    app: Staffa, path: Path
) -> None:
    async with app:
        stored = await wait.enqueue(1)
        await eventually(lambda: peak["now"] == 1)
        older = producer_of(app).held[stored.id or 0]

        other = sqlite3.connect(path, timeout=60, isolation_level=None)
        other.execute("UPDATE oban_jobs SET state = 'available' WHERE id = ?", (stored.id,))
        other.close()
        await eventually(lambda: older.finished)
        gate.set()
        await eventually(lambda: not producer_of(app).held and len(started) == 2)

    assert peak["most"] == 1
    assert await states(app) == {"completed": 1}


async def test_a_cancelled_job_is_interrupted_and_stays_cancelled__cases_4_26_77(app: Staffa) -> None:
    async with app:
        stored = await wait.enqueue(1)
        await eventually(lambda: peak["now"] == 1)

        cancelled = await app.cancel_job(stored.id or 0)
        await eventually(lambda: peak["now"] == 0)
        await eventually(lambda: not producer_of(app).held)

    assert cancelled is not None
    assert await states(app) == {"cancelled": 1}


async def test_a_thread_job_learns_that_it_was_cancelled(app: Staffa) -> None:
    async with app:
        stored = await wait_in_thread.enqueue()
        await eventually(lambda: bool(started))

        await app.cancel_job(stored.id or 0)
        await eventually(lambda: not producer_of(app).held)

    assert await states(app) == {"cancelled": 1}


async def test_an_unknown_worker_is_given_back_without_costing_the_attempt__case_64(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    here = Staffa(url, queues={"default": 5}, plugins=False)
    stored = await here.enqueue(Job(worker="nowhere.to.be.Found"))
    # Another live node that does not name the worker: it might know it.
    await here._runtime().run(here._runtime().engine.heartbeat([_beat("elsewhere")]))

    async with here:
        await eventually(lambda: producer_of(here).unknown)
        await note.enqueue(1)
        await eventually(lambda: started == [1])
        row = await here.get_job(stored.id or 0)
        assert row is not None
        assert (row.state, row.attempt, row.errors) == ("available", 0, [])

    warnings = [
        r for r in caplog.records if "nowhere.to.be.Found" in r.getMessage() and r.levelno == logging.WARNING
    ]
    assert len(warnings) == 1
    await here.close()


async def test_a_worker_that_no_live_node_knows_fails_with_the_reason__case_64(app: Staffa) -> None:
    stored = await app.enqueue(Job(worker="nowhere.to.be.Found", max_attempts=1))

    async with app:
        row = await eventually(lambda: _in_state(app, stored, "discarded"))

    assert row.attempt == 1
    assert "unknown worker 'nowhere.to.be.Found'" in row.errors[0].summary


async def test_arguments_that_do_not_fit_the_signature_fail_the_attempt_and_nothing_else__case_65(
    app: Staffa,
) -> None:
    stored = await app.enqueue(Job(worker="producer.note", args={"m": 1}, max_attempts=1))

    async with app:
        row = await eventually(lambda: _in_state(app, stored, "discarded"))
        await note.enqueue(1)
        await eventually(lambda: started == [1])

    assert row.errors[0].summary.startswith("TypeError: note() got an unexpected keyword argument 'm'")


async def test_claims_that_fail_unexpectedly_do_not_end_the_loop__case_43(
    app: Staffa, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with app:
        engine = app._runtime().engine
        whole, failures = engine.ack_and_claim, iter([True])

        def failing(*args: Any, **kwargs: Any) -> Any:
            if next(failures, False):
                raise RuntimeError("unexpected")
            return whole(*args, **kwargs)

        monkeypatch.setattr(engine, "ack_and_claim", failing)
        await note.enqueue(1)
        await eventually(lambda: started == [1])

    assert any("producer default failed" in record.getMessage() for record in caplog.records)


async def test_context_variables_do_not_leak_between_jobs(app: Staffa) -> None:
    async with app:
        await app.enqueue_all(leaky.new() for _ in range(20))
        await eventually(lambda: len(seen) == 20)

    assert set(seen) == {None}
    seen.clear()


seen: list[int | None] = []
variable: contextvars.ContextVar[int | None] = contextvars.ContextVar("leaky", default=None)


@job(name="producer.leaky")
def leaky() -> None:
    seen.append(variable.get())
    variable.set(1)


def _beat(node: str) -> Beat:
    return Beat("11111111-1111-4111-8111-111111111111", "staffa", node, "default", {"limit": 1})


async def _in_state(app: Staffa, stored: Job, state: str) -> Job | None:
    row = await app.get_job(stored.id or 0)
    return row if row is not None and row.state == state else None
