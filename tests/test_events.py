"""What is emitted is what is declared: a watchman. Jobs go through every path, and somebody listens to everything."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from staffa import Cancel, Discard, Job, Plugin, Snooze, Staffa, Worker, current_job, heartbeat, telemetry
from staffa.errors import DatabaseUnavailable
from staffa.notifiers.postgres import PostgresNotifier
from staffa.steps import Statement, Steps
from tests.support import eventually

gate = threading.Event()
noticed = threading.Event()


class Ends(Worker, name="events.ends"):
    """Ends as its args say."""

    async def perform(self, job: Job) -> object:
        match job.args["end"]:
            case "cancel":
                return Cancel("gone")
            case "discard":
                raise Discard("no use")
            case "snooze":
                return Snooze(3600)
            case "fail":
                raise ValueError("no")
            case "block":
                noticed.wait(60)  # blocks the event loop until somebody says so
            case "wait":
                await asyncio.Event().wait()
            case _:
                return "done"
        return None


class Slow(Worker, name="events.slow", timeout=0.01):
    """A thread that does not ask whether it should stop."""

    def perform(self, job: Job) -> object:
        return gate.wait(60)


class Gauge(Plugin):
    """Ticks well once, then never again."""

    def __init__(self) -> None:
        super().__init__(interval=0.01)
        self.ticks = 0

    async def tick(self) -> int:
        self.ticks += 1
        if self.ticks > 1:
            raise ValueError("no")
        return self.ticks


class Ear:
    """Hears everything; keeps the keys of each event, and a few facts."""

    def __init__(self) -> None:
        self.keys: dict[str, set[str]] = {}
        self.jobs: list[tuple[str, str, object]] = []
        self.wrong: list[str] = []

    def __call__(self, name: str, data: Mapping[str, Any]) -> None:
        declared = set(telemetry.EVENTS[name].keys) if name in telemetry.EVENTS else set[str]()
        if set(data) != declared:
            self.wrong.append(f"{name}: {sorted(set(data) ^ declared)}")
        self.keys.setdefault(name, set()).update(data)
        if name == "loop.blocked":
            noticed.set()
        if "job" in data and data["job"] is not None:
            job = data["job"]
            self.jobs.append(
                (name, str(job.args.get("end", job.worker)), data.get("state", data.get("reason")))
            )

    def has(self, *told: tuple[str, str, object]) -> bool:
        return set(told) <= set(self.jobs)


@pytest.fixture
async def ear(monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Ear, None]:
    monkeypatch.setattr(heartbeat, "PING_EVERY", 0.02)
    monkeypatch.setattr(heartbeat, "BLOCKED_AFTER", 0.05)
    gate.clear()
    noticed.clear()
    ear = Ear()
    emit = telemetry.emit

    def overhear(name: str, data: Mapping[str, Any]) -> None:
        ear(name, data)  # also what is not declared, and so cannot be attached to
        emit(name, data)

    monkeypatch.setattr(telemetry, "emit", overhear)
    telemetry.attach("test-ear", lambda name, data: None)
    yield ear
    telemetry.detach("test-ear")


def an_app(path: Path, **options: Any) -> Staffa:
    return Staffa(f"sqlite:///{path / 'jobs.db'}", queues={"default": 20}, stage_interval=0.02, **options)


async def test_every_event_that_is_emitted_is_declared_and_every_declared_one_is_emitted(
    tmp_path: Path, ear: Ear, monkeypatch: pytest.MonkeyPatch
) -> None:
    gauge = Gauge()
    app = an_app(tmp_path, plugins=[gauge], grace_period=0.05)

    async with app:
        for end in ("value", "fail", "discard", "cancel", "snooze", "block"):
            await Ends.enqueue({"end": end})
        await Ends.enqueue({"end": "fail"}, max_attempts=1)
        await Slow.enqueue()
        lost = await app.enqueue(Ends.new({"end": "wait"}))
        unknown = Job(worker="events.nowhere", max_attempts=1)
        await app.enqueue(unknown)
        await eventually(lambda: ("job.start", "wait", None) in ear.jobs)
        assert lost.id is not None
        await app.cancel_job(lost.id)
        await eventually(lambda: "job.late" in ear.keys and "loop.blocked" in ear.keys)
        gate.set()
        await eventually(
            lambda: ear.has(
                ("job.stop", "value", "completed"),
                ("job.stop", "cancel", "cancelled"),
                ("job.stop", "discard", "discarded"),
                ("job.stop", "snooze", "scheduled"),
                ("job.stop", "events.slow", "completed"),
                ("job.exception", "fail", "retryable"),
                ("job.exception", "fail", "discarded"),
                ("job.lost", "wait", "cancelled"),
                ("job.released", "events.nowhere", "unknown worker"),
            )
        )
        await eventually(lambda: "plugin.exception" in ear.keys and "loop.failed" in ear.keys)
        await _fail_once(app, ear, monkeypatch)
        await _misheard(app, monkeypatch)
        await _switched()
        await app.enqueue(Ends.new({"end": "wait", "orphan": True}))
        await eventually(lambda: ear.jobs.count(("job.start", "wait", None)) == 2)
    await app.close()

    assert ("job.released", "wait", "shutdown") in ear.jobs
    assert ear.wrong == []
    assert set(ear.keys) == set(telemetry.EVENTS)


async def _fail_once(app: Staffa, ear: Ear, monkeypatch: pytest.MonkeyPatch) -> None:
    """One failing round of the producer, and of the stager."""
    engine: Any = app._runtime().engine

    for verb, event in (("ack_and_claim", "producer.exception"), ("stage_jobs", "stager.exception")):
        monkeypatch.setattr(engine, verb, partial(_broken, engine, verb, getattr(engine, verb)))
        await Ends.enqueue({"end": "value"})
        await eventually(partial(ear.keys.get, event))


def _broken(engine: Any, verb: str, sound: object, *_: object, **__: object) -> Steps[Any]:
    """A verb that fails, and is mended by it."""
    setattr(engine, verb, sound)
    yield Statement("SELECT 1")
    raise DatabaseUnavailable("for a moment")


async def _misheard(app: Staffa, monkeypatch: pytest.MonkeyPatch) -> None:
    """A notifier that cannot send."""

    def broken(channel: str, payloads: object) -> None:
        raise ValueError("no")

    notifier = app._runtime().notifier
    sound = notifier.tell
    monkeypatch.setattr(notifier, "tell", broken)
    with pytest.raises(ValueError, match="no"):
        await notifier.notify("test", [{}])
    monkeypatch.setattr(notifier, "tell", sound)


async def _switched() -> None:
    """A notifier that changes the way in which messages reach it: there are none from elsewhere."""

    async def none(*_: object) -> Any:
        raise AssertionError("it is switched off")

    await PostgresNotifier("Staffa", None, none, none, node="here", topic="events", enabled=False).start()


async def test_a_job_ends_before_its_end_is_told(tmp_path: Path, ear: Ear) -> None:
    told: list[str] = []
    app = an_app(tmp_path, plugins=False)

    async def stored(id: int) -> str:
        job = await app.get_job(id)
        assert job is not None
        return job.state

    states: list[asyncio.Task[str]] = []

    def look(name: str, data: Mapping[str, Any]) -> None:
        told.append(name)
        states.append(asyncio.get_running_loop().create_task(stored(data["job"].id)))

    telemetry.attach("test-look", look, ["job.stop", "job.exception"])
    try:
        async with app:
            await Ends.enqueue({"end": "value"})
            await Ends.enqueue({"end": "fail"})
            await eventually(lambda: len(told) == 2)
            assert sorted(await asyncio.gather(*states)) == ["completed", "retryable"]
    finally:
        telemetry.detach("test-look")
        await app.close()


async def test_a_job_is_told_with_its_times(tmp_path: Path) -> None:
    data: list[Mapping[str, Any]] = []
    app = an_app(tmp_path, plugins=False)
    telemetry.attach("test-times", lambda _, said: data.append(said), ["job.stop"])
    try:
        async with app:
            await Ends.enqueue({"end": "value"})
            await eventually(lambda: data)
    finally:
        telemetry.detach("test-times")
        await app.close()

    [said] = data
    assert said["result"] == "done"
    assert 0 <= said["duration"] < 60
    assert 0 <= said["queue_time"] < 60
    assert current_job() is None
