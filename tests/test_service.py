"""Services: one lifecycle, and the loop that ticks until it is stopped."""

import asyncio
import gc
import logging
import random
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from staffa import telemetry
from staffa.errors import DatabaseError, DatabaseUnavailable
from staffa.service import Loop, Service
from tests.support import eventually

HOUR = 3600.0


class Diary(Service):
    """Notes what happens to it."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    async def opened(self) -> None:
        self.lines.append("opened")

    async def run(self) -> None:
        self.lines.append("running")
        await asyncio.Event().wait()

    async def closed(self) -> None:
        self.lines.append("closed")


class Ticker(Loop):
    """Counts its ticks; `during` happens in each of them."""

    pause, longest_pause = 0.001, 0.004
    halt_within = 60.0

    def __init__(self, during: Callable[[], Any] | None = None, interval: float = HOUR) -> None:
        super().__init__(interval)
        self.ticks = 0
        self.done = 0
        self.during = during
        self.gate: asyncio.Event | None = None

    async def tick(self) -> None:
        self.ticks += 1
        if self.during is not None:
            self.during()
        if self.gate is not None:
            await self.gate.wait()
        self.done += 1


def after(ticker: Ticker, ticks: int) -> Callable[[], bool]:
    return lambda: ticker.done >= ticks


async def test_a_service_runs_between_its_start_and_its_stop() -> None:
    diary = Diary()

    async with diary:
        await eventually(lambda: diary.running and "running" in diary.lines)

    assert not diary.running
    assert diary.lines == ["opened", "running", "closed"]


async def test_a_service_is_named_by_its_class() -> None:
    assert Diary().name == "diary"
    assert Service("other").name == "other"


async def test_its_task_has_its_name() -> None:
    async with Diary():
        assert "staffa diary" in {task.get_name() for task in asyncio.all_tasks()}


async def test_starting_and_stopping_twice_does_nothing_more() -> None:
    diary = Diary()

    await diary.start()
    await diary.start()
    await diary.stop()
    await diary.stop()

    assert [line for line in diary.lines if line != "running"] == ["opened", "closed"]


async def test_a_service_may_be_stopped_before_it_is_started() -> None:
    diary = Diary()

    await diary.stop()

    assert diary.lines == []


@pytest.mark.parametrize("make", [Diary, Ticker])
async def test_a_stopped_service_can_start_again_any_number_of_times(make: Callable[[], Service]) -> None:
    service = make()

    for _ in range(3):
        async with service:
            assert service.running

    assert not service.running


async def test_the_first_tick_comes_at_once() -> None:
    async with Ticker() as ticker:
        await eventually(after(ticker, 1))


async def test_ticks_come_at_the_interval() -> None:
    async with Ticker(interval=0.001) as ticker:
        await eventually(after(ticker, 5))


async def test_a_wake_causes_a_tick() -> None:
    async with Ticker() as ticker:
        await eventually(after(ticker, 1))

        ticker.wake()

        await eventually(after(ticker, 2))


async def test_a_wake_may_come_from_another_thread() -> None:
    async with Ticker() as ticker:
        await eventually(after(ticker, 1))

        await asyncio.to_thread(ticker.wake_from_anywhere)

        await eventually(after(ticker, 2))


async def test_many_wakes_during_a_tick_cause_one_more_tick_never_none() -> None:
    async with Ticker() as ticker:
        await eventually(after(ticker, 1))
        ticker.gate = asyncio.Event()
        ticker.wake()
        await eventually(lambda: ticker.ticks == 2)

        for _ in range(5):
            ticker.wake()
        gate, ticker.gate = ticker.gate, None
        gate.set()

        await eventually(after(ticker, 3))
        for _ in range(20):
            await asyncio.sleep(0)
        assert ticker.ticks == 3


async def test_a_tick_that_wakes_its_own_loop_is_followed_by_another() -> None:
    ticker = Ticker()
    ticker.during = lambda: ticker.wake() if ticker.ticks < 4 else None

    async with ticker:
        await eventually(after(ticker, 4))

    assert ticker.ticks == 4


def test_a_wake_after_the_end_of_its_event_loop_does_nothing() -> None:
    ticker = Ticker()

    async def run() -> None:
        async with ticker:
            await eventually(after(ticker, 1))

    ticker.wake_from_anywhere()
    asyncio.run(run())
    ticker.wake_from_anywhere()

    assert ticker.done == 1


async def test_a_stop_lets_the_present_tick_finish() -> None:
    ticker = Ticker()
    ticker.gate = asyncio.Event()
    await ticker.start()
    await eventually(lambda: ticker.ticks == 1)

    stopping = asyncio.create_task(ticker.stop())
    await asyncio.sleep(0)
    assert not stopping.done()
    ticker.gate.set()
    await stopping

    assert (ticker.ticks, ticker.done) == (1, 1)


async def test_a_stop_before_the_first_tick_waits_for_nothing() -> None:
    ticker = Ticker()

    await ticker.start()
    await ticker.stop()

    assert ticker.ticks == 0


def failing(times: int, error: Callable[[], BaseException]) -> Callable[[], None]:
    """Raises the first so many times."""
    left = [times]

    def fail() -> None:
        if left[0]:
            left[0] -= 1
            raise error()

    return fail


async def test_a_tick_that_fails_is_logged_with_its_traceback_and_the_loop_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with Ticker(failing(3, lambda: ValueError("no luck"))) as ticker:
        await eventually(after(ticker, 1))

    failures = [record for record in caplog.records if record.name == "staffa.service"]
    assert len(failures) == 3
    assert "ticker failed and goes on in" in failures[0].message
    assert "no luck" in failures[0].message
    assert failures[0].exc_info


@pytest.mark.parametrize("kind", [DatabaseUnavailable, DatabaseError])
async def test_what_a_database_refuses_is_logged_in_one_line(
    kind: type[DatabaseError], caplog: pytest.LogCaptureFixture
) -> None:
    async with Ticker(failing(1, lambda: kind("locked"))) as ticker:
        await eventually(after(ticker, 1))

    [record] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "locked" in record.message
    assert not record.exc_info


async def test_pauses_grow_with_the_failures_up_to_the_longest_and_begin_anew_after_a_success(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(random, "random", lambda: 0.0)
    delays: list[float] = []

    def note(_: str, data: Mapping[str, Any]) -> None:
        delays.append(data["delay"])

    telemetry.attach("test-pauses", note, ["loop.failed"])
    try:
        async with Ticker(failing(5, ValueError)) as ticker:
            await eventually(after(ticker, 1))
            ticker.during = failing(1, ValueError)
            ticker.wake()
            await eventually(after(ticker, 2))
    finally:
        telemetry.detach("test-pauses")

    assert delays == [0.001, 0.002, 0.004, 0.004, 0.004, 0.001]


async def test_loops_that_failed_together_do_not_come_back_together__case_41() -> None:
    delays: list[float] = []
    telemetry.attach("test-pauses", lambda _, data: delays.append(data["delay"]), ["loop.failed"])
    tickers = [Ticker(failing(3, lambda: DatabaseUnavailable("an outage"))) for _ in range(20)]
    try:
        for ticker in tickers:
            await ticker.start()
        await eventually(lambda: all(ticker.done for ticker in tickers))
    finally:
        telemetry.detach("test-pauses")
        for ticker in tickers:
            await ticker.stop()

    assert len(delays) == len(set(delays)) == 60


async def test_a_service_to_whose_task_nobody_else_refers_is_not_collected__case_63() -> None:
    async with Ticker(interval=0.001) as ticker:
        for _ in range(5):
            done = ticker.done
            gc.collect()
            await eventually(after(ticker, done + 1))


async def test_a_pause_is_not_shortened_by_a_wake_but_by_a_stop() -> None:
    ticker = Ticker(failing(1, ValueError))
    ticker.pause = ticker.longest_pause = HOUR
    await ticker.start()
    await eventually(lambda: ticker.ticks == 1)

    for _ in range(10):
        ticker.wake()
        await asyncio.sleep(0)
    assert ticker.ticks == 1
    async with asyncio.timeout(60):
        await ticker.stop()


async def test_a_cancelled_error_out_of_a_tick_does_not_end_the_loop() -> None:
    async with Ticker(failing(2, asyncio.CancelledError)) as ticker:
        await eventually(after(ticker, 1))

        assert ticker.ticks == 3


async def test_a_loop_whose_task_is_cancelled_ends() -> None:
    ticker = Ticker()
    ticker.gate = asyncio.Event()
    await ticker.start()
    await eventually(lambda: ticker.ticks == 1)
    assert ticker._task is not None

    ticker._task.cancel()
    await asyncio.wait([ticker._task])
    await ticker.stop()

    assert ticker.done == 0
