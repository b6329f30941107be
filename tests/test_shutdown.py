"""How an instance stops: jobs finish within the grace period, the rest goes back, nothing is lost."""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from staffa import RunningJob, Staffa, job, telemetry
from tests.support import eventually

events: list[str] = []
gate = threading.Event()


@job(name="shutdown.short")
async def short() -> None:
    events.append("short began")
    await asyncio.sleep(0.05)
    events.append("short ended")


@job(name="shutdown.long")
async def long() -> None:
    events.append("long began")
    await asyncio.Event().wait()


@job(name="shutdown.stubborn")
async def stubborn() -> None:
    events.append("stubborn began")
    while not gate.is_set():
        try:
            await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            events.append("stubborn was cancelled")


@job(name="shutdown.cleanup_fails")
async def cleanup_fails() -> None:
    events.append("began")
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        raise RuntimeError("the cleanup failed") from None


@job(name="shutdown.asks")
def asks(job: RunningJob) -> None:
    events.append("asks began")
    while True:
        job.check_cancelled()
        gate.wait(0.002)


@job(name="shutdown.thread")
def thread() -> None:
    events.append("thread began")
    gate.wait()


@pytest.fixture(autouse=True)
def _fresh() -> None:
    events.clear()
    gate.clear()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


@pytest.fixture
async def app(path: Path) -> AsyncIterator[Staffa]:
    app = Staffa(f"sqlite:///{path}", queues={"default": 5}, grace_period=0.1, plugins=False)
    yield app
    gate.set()
    await app.close()


def rows(path: Path) -> list[Any]:
    connection = sqlite3.connect(path, timeout=60, isolation_level=None)
    try:
        return connection.execute("SELECT state, attempt, errors FROM oban_jobs ORDER BY id").fetchall()
    finally:
        connection.close()


async def test_a_job_that_ends_within_the_grace_period_is_completed(path: Path) -> None:
    app = Staffa(f"sqlite:///{path}", queues={"default": 5}, grace_period=60, plugins=False)

    async with app:
        await short.enqueue()
        await eventually(lambda: "short began" in events)

    assert events == ["short began", "short ended"]
    assert rows(path) == [("completed", 1, "[]")]
    await app.close()


async def test_a_job_that_does_not_end_goes_back_without_costing_the_attempt__case_56(
    app: Staffa, path: Path
) -> None:
    heard: list[Mapping[str, Any]] = []
    telemetry.attach("test", lambda name, data: heard.append(data), ["queue.shutdown"])

    async with app:
        stored = await long.enqueue()
        await eventually(lambda: events == ["long began"])
    telemetry.detach("test")

    assert rows(path) == [("available", 0, "[]")]
    assert heard[0]["orphaned"] == [stored.id]


async def test_an_error_out_of_the_cleanup_does_not_cost_the_attempt(app: Staffa, path: Path) -> None:
    async with app:
        await cleanup_fails.enqueue()
        await eventually(lambda: events == ["began"])

    assert rows(path) == [("available", 0, "[]")]


async def test_a_thread_that_asks_goes_back_too(app: Staffa, path: Path) -> None:
    async with app:
        await asks.enqueue()
        await eventually(lambda: events == ["asks began"])

    assert rows(path) == [("available", 0, "[]")]


async def test_jobs_enqueued_during_the_stop_are_not_started(app: Staffa, path: Path) -> None:
    async with app:
        await long.enqueue()
        await eventually(lambda: events == ["long began"])
        stop = asyncio.create_task(app.stop())
        await eventually(lambda: app._producers["default"]._draining)
        await app.enqueue(short.new())
        await stop

    assert events == ["long began"]
    assert [row[0] for row in rows(path)] == ["available", "available"]


async def test_the_heartbeat_lasts_until_the_last_job__case_58(path: Path) -> None:
    app = Staffa(f"sqlite:///{path}", queues={"default": 5}, grace_period=60, plugins=False)

    async with app:
        await thread.enqueue()
        await eventually(lambda: events == ["thread began"])
        stop = asyncio.create_task(app.stop())
        await eventually(lambda: app._producers["default"]._draining)

        connection = sqlite3.connect(path, timeout=60)
        assert connection.execute("SELECT count(*) FROM staffa_producers").fetchone() == (1,)
        connection.close()
        gate.set()
        await stop

    assert rows(path) == [("completed", 1, "[]")]
    await app.close()


async def test_a_thread_that_cannot_be_stopped_keeps_its_row_and_heartbeat_until_it_ends(
    app: Staffa, path: Path
) -> None:
    async with app:
        await thread.enqueue()
        await eventually(lambda: events == ["thread began"])
        stop = asyncio.create_task(app.stop())
        await eventually(lambda: app._producers["default"].held[1].stop_reason == "shutdown")

        assert rows(path) == [("executing", 1, "[]")]
        gate.set()
        await stop

    assert rows(path) == [("completed", 1, "[]")]


async def test_a_coroutine_that_swallows_its_cancellation_is_cancelled_three_times__case_23(
    app: Staffa, path: Path
) -> None:
    async with app:
        await stubborn.enqueue()
        await eventually(lambda: events == ["stubborn began"])
        stop = asyncio.create_task(app.stop())
        await eventually(lambda: app._producers["default"].held[1].abandoned)

        assert events.count("stubborn was cancelled") == 3
        gate.set()
        await stop

    assert rows(path) == [("completed", 1, "[]")]


async def test_a_job_cancelled_before_its_first_step_goes_back__case_62(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = Staffa(f"sqlite:///{path}", queues={"default": 5}, grace_period=0, plugins=False)
    await app.start()
    producer = app._producers["default"]
    started = producer.executor.start

    def start_and_stop(*args: Any, **kwargs: Any) -> Any:
        execution = started(*args, **kwargs)
        execution.stop("shutdown")
        producer.paused = True
        return execution

    monkeypatch.setattr(
        producer.executor, "start", start_and_stop
    )  # a stop between the claim and the first step
    await short.enqueue()
    await eventually(lambda: rows(path) == [("available", 0, "[]")] and not producer.held)

    assert events == []
    await app.close()


async def test_start_and_stop_may_be_repeated(app: Staffa, path: Path) -> None:
    for _ in range(3):
        await app.start()
        await app.start()
        await short.enqueue()
        await eventually(lambda: not app._producers["default"].held and "short ended" in events)
        await app.stop()
        await app.stop()

    await eventually(lambda: all(row[0] != "executing" for row in rows(path)))
