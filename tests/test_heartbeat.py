"""The heartbeat: beats on while jobs block the loop, reconciles, names what blocks."""

import asyncio
import gc
import sqlite3
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from staffa import Job, Lifeline, Staffa, clock, heartbeat, job, telemetry
from staffa.engine import Beat, Beaten
from staffa.errors import DatabaseUnavailable
from staffa.heartbeat import Heartbeat
from staffa.producer import Producer
from staffa.runtime import Pulse
from staffa.steps import Steps
from tests.support import eventually

running = 0


noticed = threading.Event()


@job(name="heartbeat.block")
async def block() -> None:
    noticed.wait(60)  # blocks the event loop, until the other thread has done what the test is about


@job(name="heartbeat.block_for_two_beats")
async def block_for_two_beats(path: str) -> None:
    """Blocks the event loop until its row has been refreshed twice."""
    beats = {look(Path(path), BEATEN)[0][0]}
    for _ in range(6_000):
        beats.add(look(Path(path), BEATEN)[0][0])
        if len(beats) > 2:
            noticed.set()
            return
        noticed.wait(0.01)


@job(name="heartbeat.wait")
async def wait() -> None:
    global running
    running += 1
    try:
        await asyncio.Event().wait()
    finally:
        running -= 1


@pytest.fixture(autouse=True)
def _fresh() -> None:
    noticed.clear()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


@pytest.fixture
async def app(path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Staffa]:
    monkeypatch.setattr(heartbeat, "BEAT_EVERY", 0.05)
    monkeypatch.setattr(Heartbeat.__init__, "__defaults__", (0.05,))
    app = Staffa(f"sqlite:///{path}", queues={"default": 5}, grace_period=0.1, plugins=False)
    yield app
    await app.close()


async def _next_beat(path: Path) -> None:
    beaten = look(path, BEATEN)
    await eventually(lambda: look(path, BEATEN) > beaten)


def producer_of(app: Staffa) -> Producer:
    return app._producers["default"]


BEATEN = "SELECT updated_at FROM staffa_producers"


def look(path: Path, sql: str) -> list[Any]:
    connection = sqlite3.connect(path, timeout=60, isolation_level=None)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


async def test_it_beats_while_a_job_blocks_the_loop__case_6(app: Staffa, path: Path) -> None:
    async with app:
        await block_for_two_beats.enqueue(str(path))
        await eventually(noticed.is_set)


async def test_it_names_the_job_and_the_line_that_block_the_loop__case_6(
    app: Staffa, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[Mapping[str, Any]] = []

    def hear(name: str, data: Mapping[str, Any]) -> None:
        if data["job"] is not None:  # on a busy machine, whatever runs may be slow
            heard.append(data)
            noticed.set()

    telemetry.attach("test", hear, ["loop.blocked"])
    try:
        async with app:
            stored = await block.enqueue()
            await eventually(lambda: heard)
    finally:
        telemetry.detach("test")

    assert heard[0]["job"].id == stored.id
    assert "block (" in heard[0]["line"]
    assert "test_heartbeat.py:" in heard[0]["line"]
    assert any(
        "heartbeat.block" in r.getMessage() and "has been blocked" in r.getMessage() for r in caplog.records
    )


async def test_a_claim_whose_answer_was_lost_goes_back_without_costing_the_attempt__case_69(
    app: Staffa, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with app:
        producer = producer_of(app)
        real, lose = producer.runtime.connections.run, iter([True])

        async def losing(steps: Any) -> Any:
            result = await real(steps)
            if getattr(result, "jobs", None) and next(lose, False):
                from staffa.errors import DatabaseUnavailable

                raise DatabaseUnavailable("the answer was lost")
            return result

        monkeypatch.setattr(producer.runtime.connections, "run", losing)
        stored = await wait.enqueue()
        await eventually(lambda: running == 1)

        assert look(path, "SELECT attempt, state FROM oban_jobs") == [(1, "executing")]
        assert stored.id in producer.held


async def test_a_claim_whose_answer_was_lost_goes_back_though_the_queue_never_rests__case_69(
    app: Staffa, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with app:
        producer = producer_of(app)
        producer.paused = True
        real = producer.runtime.engine.heartbeat

        def busy(beats: Sequence[Beat]) -> Steps[Beaten]:
            producer.claims_begun += 1  # during every beat a claim comes and goes
            producer.claims_ended += 1
            return (yield from real(beats))

        monkeypatch.setattr(producer.runtime.engine, "heartbeat", busy)
        await wait.enqueue()
        claim = producer.runtime.engine.ack_and_claim(producer.beat(), [], 1)
        assert len((await producer.runtime.run(claim)).jobs) == 1

        await eventually(lambda: look(path, "SELECT state, attempt FROM oban_jobs") == [("available", 0)])


async def test_a_row_that_cannot_be_given_back_costs_neither_the_beat_nor_the_other_rows(
    app: Staffa, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with app:
        producer = producer_of(app)
        await app.enqueue_all(Job(worker="heartbeat.note", queue="elsewhere") for _ in range(2))
        look(
            path,
            f"""
UPDATE oban_jobs SET state = 'executing', attempt = 1, attempted_at = '2026-01-01 00:00:00.000000',
attempted_by = '["{app.config.node}","{producer.uuid}"]'
""",
        )
        look(
            path,
            "CREATE TRIGGER keep BEFORE UPDATE ON oban_jobs WHEN old.id = 1 BEGIN SELECT RAISE(ABORT, 'no'); END",
        )
        await eventually(
            lambda: look(path, "SELECT state FROM oban_jobs") == [("executing",), ("available",)]
        )
        for _ in range(3):
            await _next_beat(path)
        await wait.enqueue()
        await eventually(lambda: running == 1)

    said = [record.getMessage() for record in caplog.records]
    assert len([one for one in said if "job 1 executes" in one and "could not be given back" in one]) == 1
    assert [one for one in said if "are available again" in one] == [
        "queue default: jobs [2] were claimed, but the answer never came; they are available again"
    ]
    assert not [one for one in said if "a heartbeat failed" in one]


async def test_what_keeps_a_beat_from_comparing_does_not_stop_the_pulse(
    app: Staffa, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def failing(*_: Any) -> None:
        raise DatabaseUnavailable("somebody holds that row")

    async with app:
        monkeypatch.setattr(Heartbeat, "_give_back", failing)
        await eventually(lambda: any("somebody holds" in r.getMessage() for r in caplog.records))
        await wait.enqueue()
        await eventually(lambda: running == 1)

    assert not [r for r in caplog.records if "a heartbeat failed" in r.getMessage()]


async def test_a_job_cancelled_by_another_process_is_interrupted_by_the_next_beat(
    app: Staffa, path: Path
) -> None:
    async with app:
        await wait.enqueue()
        await eventually(lambda: running == 1)

        look(path, "UPDATE oban_jobs SET state = 'cancelled', cancelled_at = '2026-01-01 00:00:00.000000'")
        await eventually(lambda: running == 0)
        await eventually(lambda: not producer_of(app).held)

    assert look(path, "SELECT state FROM oban_jobs") == [("cancelled",)]


async def test_a_job_whose_row_was_deleted_is_interrupted_by_the_next_beat(app: Staffa, path: Path) -> None:
    async with app:
        await wait.enqueue()
        await eventually(lambda: running == 1)

        look(path, "DELETE FROM oban_jobs")
        await eventually(lambda: running == 0)


async def test_a_job_rescued_from_us_is_interrupted_and_its_new_run_stands__case_1(
    app: Staffa, path: Path
) -> None:
    async with app:
        await wait.enqueue()
        await eventually(lambda: running == 1)

        look(
            path,
            "UPDATE oban_jobs SET attempted_at = '2030-01-01 00:00:00.000000', attempted_by = '[\"b\",\"c\"]'",
        )
        await eventually(lambda: running == 0)
        await eventually(lambda: not producer_of(app).held)

    assert look(path, "SELECT state, attempted_by FROM oban_jobs") == [("executing", '["b","c"]')]


async def test_a_newer_claim_of_the_same_job_is_not_interrupted_for_an_older_one__case_8(app: Staffa) -> None:
    async with app:
        stored = await wait.enqueue()
        await eventually(lambda: running == 1)
        producer = producer_of(app)
        execution = producer.held[stored.id or 0]

        producer.interrupt(stored.id or 0, "lost", "2020-01-01 00:00:00.000000")
        assert execution.stop_reason is None
        producer.interrupt(stored.id or 0, "lost", execution.job._token)
        assert execution.stop_reason == "lost"


async def test_a_row_completed_inside_the_jobs_own_transaction_is_left_alone(app: Staffa, path: Path) -> None:
    async with app:
        await wait.enqueue()
        await eventually(lambda: running == 1)

        look(path, "UPDATE oban_jobs SET state = 'completed', completed_at = '2026-01-01 00:00:00.000000'")
        for _ in range(2):  # the second one began after the row had changed
            await _next_beat(path)

        assert running == 1


async def test_a_producers_row_that_was_taken_away_comes_back_with_the_next_beat(
    app: Staffa, path: Path
) -> None:
    async with app:
        look(path, "DELETE FROM staffa_producers")

        await eventually(lambda: look(path, "SELECT queue FROM staffa_producers") == [("default",)])


async def test_a_failing_beat_is_logged_and_the_next_one_comes(
    app: Staffa, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with app:
        engine = app._runtime().engine
        real, fail = engine.heartbeat, iter([True])

        def failing(beats: list[Beat]) -> Any:
            if next(fail, False):
                raise RuntimeError("no beat")
            return real(beats)

        monkeypatch.setattr(engine, "heartbeat", failing)
        await eventually(lambda: any("a heartbeat failed" in r.getMessage() for r in caplog.records))
        beaten = look(path, BEATEN)
        await eventually(lambda: look(path, BEATEN) > beaten)


def test_a_pulse_is_steady_only_when_beats_come_without_a_gap_by_both_clocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    moment = 100.0
    monkeypatch.setattr(clock, "monotonic", lambda: moment)
    pulse = Pulse()
    assert not pulse.steady_for(0, wall=1000, longest_gap=10)

    pulse.beats(wall=1000, longest_gap=10)
    moment = 105.0
    assert pulse.steady_for(5, wall=1005, longest_gap=10)
    assert not pulse.steady_for(6, wall=1005, longest_gap=10)
    assert not pulse.steady_for(5, wall=1065, longest_gap=10), "the wall clock has jumped"

    moment = 140.0
    assert not pulse.steady_for(5, wall=1040, longest_gap=10), "beats are missing right now"
    pulse.beats(wall=1040, longest_gap=10)
    assert not pulse.steady_for(1, wall=1040, longest_gap=10), "there was a gap just now"

    moment = 145.0
    assert pulse.steady_for(5, wall=1045, longest_gap=10)
    pulse.stops()
    assert not pulse.steady_for(0, wall=1045, longest_gap=10)
    assert not pulse.beat_within(60)


async def test_nobody_is_called_dead_after_a_time_in_which_nobody_could_write(
    app: Staffa, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lifeline = Lifeline(interval=60)
    monkeypatch.setattr(heartbeat, "LONGEST_GAP", 0.2)
    monkeypatch.setattr("staffa.plugins.lifeline.LONGEST_GAP", 0.2)
    async with app:
        lifeline.bind(app._runtime())
        await wait.enqueue()
        await eventually(lambda: running == 1)
        pulse = app._runtime().pulse
        await eventually(lambda: pulse.beat_within(0.2))

        # Somebody holds the only lock for so long that every heartbeat is stale when it is over.
        other = sqlite3.connect(path, timeout=60, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        await asyncio.get_running_loop().run_in_executor(None, threading.Event().wait, 0.5)
        other.execute("UPDATE staffa_producers SET updated_at = '2020-01-01 00:00:00.000000'")
        other.execute("COMMIT")
        other.close()
        assert await lifeline.tick() == {}

        await eventually(lambda: look(path, "SELECT updated_at > '2021' FROM staffa_producers") == [(1,)])
        assert await lifeline.tick() == {}
        assert running == 1


async def test_a_stopped_node_leaves_no_row(app: Staffa, path: Path) -> None:
    async with app:
        assert len(look(path, "SELECT 1 FROM staffa_producers")) == 1

    assert look(path, "SELECT 1 FROM staffa_producers") == []


async def test_jobs_of_a_claim_that_are_not_started_yet_are_not_taken_for_lost_ones(
    app: Staffa, path: Path
) -> None:
    def slow(name: str, data: Mapping[str, Any]) -> None:
        threading.Event().wait(0.1)  # several beats pass while the batch is being started

    telemetry.attach("test", slow, ["job.start"])
    try:
        async with app:
            await app.enqueue_all(
                [Job(worker="unknown.to.everybody", max_attempts=1), *(wait.new() for _ in range(4))]
            )
            await eventually(lambda: running == 4)
            beaten = look(path, BEATEN)
            await eventually(lambda: look(path, BEATEN) > beaten)

            assert (
                look(path, "SELECT state, attempt FROM oban_jobs WHERE worker = 'heartbeat.wait'")
                == [("executing", 1)] * 4
            )
            assert running == 4
    finally:
        telemetry.detach("test")


async def test_a_heartbeat_that_stumbles_begins_anew_and_nothing_is_claimed_meanwhile(
    app: Staffa, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with app:
        stumble = iter([True])
        real = Heartbeat._wait

        async def stumbling(self: Heartbeat, delay: float) -> None:
            if next(stumble, False):
                raise OSError("too many open files")
            await real(self, delay)

        monkeypatch.setattr(Heartbeat, "_wait", stumbling)
        await eventually(lambda: any("stumbled" in r.getMessage() for r in caplog.records))
        gc.collect()  # a connection that was left behind would say so
        beaten = look(path, BEATEN)
        await eventually(lambda: look(path, BEATEN) > beaten)

        await eventually(lambda: app._runtime().pulse.beat_within(5))
