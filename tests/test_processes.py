"""Several real processes on one file: every job once, nothing lost when any of them dies."""

import random
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from staffa import Staffa
from staffa.signals import MOMENT
from tests.support import eventually
from tests.support.process_jobs import (
    deaf,
    endless,
    endless_in_thread,
    first_time_endless,
    quick,
    quick_in_thread,
)
from tests.support.processes import Process

Start = Callable[..., Process]

WORK = "from tests.support.process_jobs import app; app.run()"


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    path = tmp_path / "notes"
    path.touch()
    return path


@pytest.fixture
def url(tmp_path: Path) -> str:
    return (
        f"sqlite:///{tmp_path / 'jobs.db'}?busy_timeout=60"  # not our subject here: a busy disk may be slow
    )


@pytest.fixture
def start(url: str, notes: Path) -> Iterator[Start]:
    """Start a process, by default a worker; all are gone when the test ends."""
    started: list[Process] = []

    def start(code: str = WORK, **environment: str) -> Process:
        started.append(Process(code, url, notes.parent, **environment))
        return started[-1]

    yield start
    for process in started:
        process.kill()


def begun(notes: Path) -> Counter[int]:
    """How often each job began, by id."""
    lines = [line.split() for line in notes.read_text().splitlines()]
    return Counter(int(line[1]) for line in lines if line[0] == "begin")


def _has_begun(notes: Path, jobs: int) -> bool:
    return len(begun(notes)) >= jobs


async def _live(app: Staffa, nodes: int) -> bool:
    return len([queue for queue in await app.list_queues() if queue.alive]) == nodes


def rows(url: str, what: str = "state, count(*)", rest: str = "GROUP BY state ORDER BY state") -> list[Any]:
    connection = sqlite3.connect(url.removeprefix("sqlite:///").partition("?")[0], timeout=60)
    try:
        return connection.execute(f"SELECT {what} FROM oban_jobs {rest}").fetchall()
    finally:
        connection.close()


def make_stale(url: str, pid: int) -> None:
    """Let 25 seconds pass for a dead node: only its row says how long it has been silent."""
    connection = sqlite3.connect(url.removeprefix("sqlite:///").partition("?")[0], timeout=60)
    node = f"%.{pid}"
    connection.execute(
        "UPDATE staffa_producers SET updated_at = '2020-01-01 00:00:00.000000' WHERE node LIKE ?", (node,)
    )
    connection.commit()
    connection.close()


async def test_two_processes_on_one_file_perform_each_of_ten_thousand_jobs_once__case_11(
    start: Start, url: str, notes: Path
) -> None:
    app = Staffa(url)
    start()
    start()
    await eventually(lambda: _live(app, 2))

    await app.enqueue_all(quick.new() for _ in range(9_000))
    await app.enqueue_all(quick_in_thread.new() for _ in range(1_000))
    await eventually(lambda: rows(url) == [("completed", 10_000)], timeout=300)

    assert set(begun(notes).values()) == {1}
    assert len(begun(notes)) == 10_000
    processes = {line.split()[3] for line in notes.read_text().splitlines()}
    assert len(processes) == 2
    await app.close()


async def test_a_killed_process_loses_nothing_and_others_run_its_jobs__case_59(
    start: Start, url: str, notes: Path
) -> None:
    app = Staffa(url)
    await app.enqueue_all(first_time_endless.new() for _ in range(10))
    victim = start()
    await eventually(lambda: len(begun(notes)) == 10)
    assert rows(url) == [("executing", 10)]

    victim.kill()
    make_stale(url, victim.pid)
    start()
    await eventually(lambda: rows(url) == [("completed", 10)], timeout=120)

    assert set(begun(notes).values()) == {2}
    assert rows(url, "DISTINCT attempt, json_extract(meta, '$.rescued')", "") == [(2, 1)]
    await app.close()


async def test_workers_killed_again_and_again_lose_no_job(start: Start, url: str, notes: Path) -> None:
    app = Staffa(url)
    await app.enqueue_all(quick_in_thread.new() for _ in range(3_000))
    workers = [start(), start()]

    for _ in range(6):
        await eventually(partial(_has_begun, notes, min(len(begun(notes)) + 150, 3_000)), timeout=120)
        victim = workers.pop(random.randrange(2))
        victim.kill()
        make_stale(url, victim.pid)
        workers.append(start())
    await eventually(lambda: rows(url) == [("completed", 3_000)], timeout=300)

    rescued = dict(rows(url, "id, coalesce(json_extract(meta, '$.rescued'), 0)", ""))
    for id, times in begun(notes).items():
        assert times <= 1 + rescued[id], "every repeat is explained by a rescue"
    await app.close()


async def test_sigterm_lets_short_jobs_finish_and_puts_long_ones_back__case_56(
    start: Start, url: str, notes: Path
) -> None:
    app = Staffa(url)
    await app.enqueue_all(endless.new() for _ in range(4))
    worker = start(GRACE="0.2")
    await eventually(lambda: len(begun(notes)) == 4)

    worker.send(signal.SIGTERM)

    assert worker.wait() == 0
    assert "were put back" in worker.said
    assert rows(url, "state, attempt", "") == [("available", 0)] * 4
    assert await app.list_queues() == []
    await app.close()


async def test_a_thread_that_cannot_be_stopped_goes_back_when_its_process_ends(
    start: Start, url: str, notes: Path
) -> None:
    app = Staffa(url)
    await app.enqueue_all([endless_in_thread.new(), deaf.new()])
    worker = start(GRACE="0.1")
    await eventually(lambda: len(begun(notes)) == 2)

    worker.send(signal.SIGTERM)

    assert worker.wait() == 0
    assert rows(url, "state, attempt", "") == [("available", 0)] * 2
    assert notes.read_text().count("cancelled") == 3
    await app.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_cuts_the_grace_period_short__case_57(
    number: signal.Signals, start: Start, url: str, notes: Path
) -> None:
    app = Staffa(url)
    await app.enqueue(endless.new())
    worker = start(GRACE="600")
    await eventually(lambda: len(begun(notes)) == 1)

    worker.send(number)
    await eventually(lambda: "stopping" in worker.said)
    first = time.monotonic()
    await eventually(lambda: time.monotonic() - first > MOMENT)
    worker.send(number)

    assert worker.wait() == 0
    assert rows(url, "state, attempt", "") == [("available", 0)]
    await app.close()


async def test_a_job_enqueued_by_another_process_is_found_by_the_watch_on_the_file(
    start: Start, url: str, notes: Path
) -> None:
    app = Staffa(url)
    await app.enqueue(quick.new())
    start(STAGE="3600")  # nothing else would find it: the producer by itself looks once a minute
    await eventually(lambda: len(begun(notes)) == 1)

    for n in range(20):
        await app.enqueue(quick.new())
        await eventually(partial(_has_begun, notes, n + 2))

    await app.close()


@pytest.mark.parametrize("seconds", [4.0, pytest.param(60.0, marks=pytest.mark.long)])
async def test_six_writers_never_see_a_locked_database__case_15(
    seconds: float, start: Start, url: str, notes: Path
) -> None:
    app = Staffa(url)
    await app.list_jobs()
    workers = [start() for _ in range(3)]
    enqueue = f"import asyncio; from tests.support.process_jobs import enqueue_for; asyncio.run(enqueue_for({seconds}))"
    writers = [start(enqueue) for _ in range(3)]

    assert [writer.wait(seconds + 120) for writer in writers] == [0, 0, 0]
    await eventually(lambda: set(dict(rows(url))) == {"completed"}, timeout=300)
    for worker in workers:
        worker.send(signal.SIGTERM)
    assert [worker.wait() for worker in workers] == [0, 0, 0]

    assert "locked" not in "".join(process.said for process in (*workers, *writers))
    assert set(begun(notes).values()) == {1}
    await app.close()
