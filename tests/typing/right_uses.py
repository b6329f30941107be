"""What a user may write, and what type checkers shall make of it. Checked by test_typing.py, never run."""

import sqlite3
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol, assert_type

from staffa import Cancel, Discard, Job, JobState, Lifeline, Plugin, Pruner, Queue, QueueInfo, RunningJob, Snooze
from staffa import Staffa, Worker, current_job, job, telemetry
from staffa.worker import FunctionJob

app = Staffa(
    "sqlite:///jobs.db",
    queues={"default": 10, "mail": Queue(limit=5, ack="immediate")},
    plugins=[Pruner(max_age=timedelta(days=1)), Lifeline(interval=5)],
    grace_period=timedelta(seconds=30),
)
Staffa(plugins=False)


@job
async def bare(user_id: int, greeting: str = "hello") -> None: ...


@job(queue="mailers", max_attempts=5, timeout=timedelta(minutes=1), backoff=lambda job: job.attempt * 2.0, app=app)
async def with_options(user_id: int, /) -> str:
    return "sent"


@job()
def plain(width: int, *, height: int = 480) -> float:
    return width / height


@job
async def wants_job(job: RunningJob, image_id: int, /) -> None:
    job.check_cancelled()


@job(name="wants.job", runner="thread", aliases=["older"], tags=["a"], meta={"k": 1}, priority=0, backoff=5)
def wants_stored_job(job: Job, /, *names: str) -> int:
    return len(names)


# The inferred types of decorated functions: their own arguments, without the job.


class Greets(Protocol):
    def __call__(self, user_id: int, greeting: str = ...) -> Coroutine[Any, Any, Job]: ...


class Makes(Protocol):
    def __call__(self, user_id: int, greeting: str = ...) -> Job: ...


class Resizes(Protocol):
    def __call__(self, image_id: int, /) -> Coroutine[Any, Any, Job]: ...


greets: Greets = bare.enqueue
makes: Makes = bare.using(priority=1).new
resizes: Resizes = wants_job.enqueue

sends: FunctionJob[[int], Coroutine[Any, Any, str]] = with_options
sends_later: FunctionJob[[int], Coroutine[Any, Any, str]] = with_options.using(schedule_in=60)
shows: FunctionJob[[int], Coroutine[Any, Any, None]] = wants_job
assert_type(plain(640, height=480), float)
assert_type(wants_stored_job.new("a", "b"), Job)


class Hooked(Worker, queue="webhooks", max_attempts=10, timeout=30, backoff=timedelta(minutes=1), app=app):
    async def perform(self, job: Job) -> object:
        match job.args["status"]:
            case 429:
                return Snooze(60)
            case 404:
                return Discard("the endpoint is gone")
            case 410:
                raise Cancel("unsubscribed")
            case _:
                return None

    def backoff(self, job: Job) -> float:
        return min(15 * 2.0**job.attempt, 3600)

    def timeout(self, job: Job) -> timedelta:
        return timedelta(seconds=job.attempt)


class Threaded(Worker, name="typing.Threaded", runner="thread", tags=("a", "b")):
    def perform(self, job: RunningJob) -> None:
        job.check_cancelled()
        assert_type(job.id, int)
        assert_type(job.cancelled, bool)


class Child(Hooked, priority=1):
    async def perform(self, job: Job) -> int:
        return job.attempt


async def use() -> None:
    assert_type(await bare.enqueue(42), Job)
    assert_type(await bare.enqueue(user_id=42, greeting="hi"), Job)
    assert_type(await bare.using(schedule_in=timedelta(hours=1), priority=1).enqueue(42, "hi"), Job)
    assert_type(await wants_job.enqueue(7), Job)
    assert_type(bare.new(42), Job)
    assert_type(await bare(42), None)
    assert_type(await with_options(42), str)

    assert_type(Hooked.new({"url": "https://example.com"}, priority=1, schedule_in=60.5), Job)
    assert_type(await Hooked.enqueue({"n": 1}, scheduled_at=datetime.now(UTC), tags=["a"], meta={"k": [1]}), Job)
    assert_type(await Hooked.enqueue(conn=sqlite3.connect("jobs.db")), Job)

    raw = Job(worker="elsewhere.Worker", args={"n": 1}, queue="other", schedule_in=60)
    assert_type(await app.enqueue(raw), Job)
    assert_type(await app.enqueue_all(bare.new(n) for n in range(10)), list[Job])
    assert_type(await app.get_job(7), Job | None)
    assert_type(await app.list_jobs(state=JobState.COMPLETED, queue=["a", "b"], worker=[Hooked, "x"]), list[Job])
    assert_type(await app.count_jobs(), dict[str, dict[str, int]])
    assert_type(await app.cancel_job(7), Job | None)
    assert_type(await app.retry_job(7), Job | None)
    assert_type(await app.list_queues(), list[QueueInfo])
    assert_type(raw.args, dict[str, Any])
    assert_type(raw.id, int | None)
    assert_type(current_job(), RunningJob | None)

    async with app as running:
        assert_type(running, Staffa)


class Gauge(Plugin):
    async def tick(self) -> dict[str, int]:
        return {"jobs": sum((await self.runtime.run(self.runtime.engine.count_jobs())).values())}


telemetry.attach("print", lambda name, data: print(name, data["job"]), ["job.stop"])
