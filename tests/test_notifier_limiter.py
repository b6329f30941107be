"""Wake-ups are limited, and none is forgotten."""

import asyncio
import logging
import threading
from collections.abc import Collection

import pytest

from staffa.notifiers.limiter import REMEMBERED, Limiter
from tests.support import eventually

LONG = 1_000.0


class Sent:
    """Where a limiter sends to."""

    def __init__(self) -> None:
        self.queues: list[set[str]] = []

    async def __call__(self, queues: Collection[str]) -> None:
        self.queues.append(set(queues))


def timers() -> list[str]:
    return [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("staffa")]


async def test_a_queue_is_woken_once_a_window_and_others_beside_it() -> None:
    limiter = Limiter(LONG, Sent())

    assert limiter.now(["mail", "media"]) == ["mail", "media"]
    assert limiter.now(["mail", "reports"]) == ["reports"]
    assert limiter.now(["mail", "media", "reports"]) == []


async def test_a_queue_is_woken_again_in_the_next_window() -> None:
    limiter = Limiter(0.001, Sent())

    assert limiter.now(["mail"]) == ["mail"]
    await eventually(lambda: limiter.now(["mail"]) == ["mail"])


async def test_those_who_were_left_out_are_woken_once_when_the_window_ends() -> None:
    sent = Sent()
    limiter = Limiter(0.02, sent)

    for queue in ("mail", "media", "mail", "mail"):
        limiter.later([queue])
    await eventually(lambda: sent.queues)

    assert sent.queues == [{"mail", "media"}]
    await eventually(lambda: not timers())


async def test_whoever_asks_when_the_window_is_open_takes_over_what_is_due() -> None:
    sent = Sent()
    limiter = Limiter(0.02, sent)

    limiter.later(["mail"])
    assert limiter.now(["mail"]) == ["mail"]
    await eventually(lambda: not timers())

    assert sent.queues == []


async def test_nothing_is_sent_before_the_window_ends() -> None:
    sent = Sent()
    limiter = Limiter(LONG, sent)

    limiter.now(["mail"])
    limiter.later(["mail"])
    await limiter._wake(0.0)
    assert sent.queues == []

    await limiter.stop()


async def test_a_flush_sends_at_once_and_only_once() -> None:
    sent = Sent()
    limiter = Limiter(LONG, sent)
    limiter.later(["mail"])

    await limiter.flush()
    await limiter.flush()
    await limiter.stop()

    assert sent.queues == [{"mail"}]
    assert timers() == []


def test_an_event_loop_that_ends_sends_what_it_owes() -> None:
    sent = Sent()
    limiter = Limiter(LONG, sent)

    async def insert() -> None:
        limiter.later(["mail"])

    asyncio.run(insert())
    asyncio.run(insert())

    assert sent.queues == [{"mail"}, {"mail"}]


def test_nobody_waits_for_an_event_loop_that_stands_still() -> None:
    sent = Sent()
    limiter = Limiter(0.02, sent)
    still = asyncio.new_event_loop()

    async def insert() -> None:
        limiter.later(["mail"])

    async def insert_and_wait() -> None:
        limiter.later(["mail"])
        await eventually(lambda: sent.queues)
        await limiter.stop()

    still.run_until_complete(insert())
    asyncio.run(insert_and_wait())

    assert sent.queues == [{"mail"}]
    still.run_until_complete(asyncio.sleep(0.001))
    still.close()


def test_a_timer_of_an_event_loop_that_was_closed_by_hand_is_collected_without_a_word(
    caplog: pytest.LogCaptureFixture,
) -> None:
    limiter = Limiter(LONG, Sent())

    async def insert() -> None:
        limiter.later(["mail"])
        await asyncio.sleep(0)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(insert())
    [timer] = limiter._timers.values()
    loop.close()
    coroutine = timer.get_coro()
    assert coroutine is not None
    coroutine.close()

    assert limiter._timers == {}


def test_several_threads_share_one_limit() -> None:
    limiter = Limiter(LONG, Sent())
    woken: list[str] = []
    together = threading.Barrier(4)

    def insert() -> None:
        together.wait()
        for number in range(200):
            woken.extend(limiter.now([f"queue-{number}"]))

    threads = [threading.Thread(target=insert) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(woken) == sorted(f"queue-{number}" for number in range(200))


async def test_queues_that_come_and_go_are_forgotten() -> None:
    limiter = Limiter(0.0, Sent())

    for number in range(3 * REMEMBERED):
        limiter.now([f"queue-{number}"])

    assert len(limiter._woken) <= REMEMBERED + 1


async def test_a_wake_up_that_fails_is_logged_and_the_next_one_is_sent(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sent: list[Collection[str]] = []

    async def send(queues: Collection[str]) -> None:
        sent.append(queues)
        if len(sent) == 1:
            raise OSError("gone")

    limiter = Limiter(0.0, send)
    with caplog.at_level(logging.WARNING, "staffa.notifiers"):
        limiter.later(["mail"])
        await eventually(lambda: "gone" in caplog.text)
    limiter.later(["mail"])
    await eventually(lambda: len(sent) == 2)
    await eventually(lambda: not timers())
