"""Runners: threads for plain functions, handed over in batches."""

import asyncio
import contextvars
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from functools import partial

import pytest

from staffa.runners import ThreadRunner
from tests.support import eventually

word = contextvars.ContextVar("word", default="none")


def has(answers: Sequence[object], count: int) -> bool:
    return len(answers) == count


async def at_rest(runner: ThreadRunner) -> None:
    """An answer may come a moment before its thread is free again."""
    await eventually(lambda: runner._idle == runner.threads)


@pytest.fixture
async def runner() -> AsyncGenerator[ThreadRunner, None]:
    runner = ThreadRunner("staffa test")
    yield runner
    runner.close()


async def test_a_call_runs_in_a_thread_and_is_answered_in_the_event_loop(runner: ThreadRunner) -> None:
    answers: list[tuple[int, int]] = []
    here = threading.get_ident()

    runner.submit(threading.get_ident, lambda ident: answers.append((ident, threading.get_ident())))
    await eventually(lambda: answers)

    [(there, back)] = answers
    assert there != here
    assert back == here


async def test_every_call_is_answered_once(runner: ThreadRunner) -> None:
    answers: list[int] = []

    for number in range(5_000):
        runner.submit(partial(int, number), answers.append)
    await eventually(lambda: len(answers) == 5_000)

    assert sorted(answers) == list(range(5_000))


async def test_short_calls_need_few_threads_and_no_calls_none(runner: ThreadRunner) -> None:
    answers: list[int] = []
    assert runner.threads == 0

    for round in range(1, 21):
        runner.submit(lambda: 1, answers.append)
        await eventually(partial(has, answers, round))
        await at_rest(runner)

    assert runner.threads == 1


async def test_calls_that_wait_for_each_other_all_run_at_the_same_time(runner: ThreadRunner) -> None:
    together = threading.Barrier(20, timeout=60)
    answers: list[int] = []

    for _ in range(20):
        runner.submit(together.wait, answers.append)
    await eventually(lambda: len(answers) == 20)

    assert runner.threads == 20


async def test_there_are_never_more_threads_than_calls_at_the_same_time(runner: ThreadRunner) -> None:
    answers: list[int] = []

    for round in range(1, 51):
        together = threading.Barrier(4, timeout=60)
        for _ in range(4):
            runner.submit(together.wait, answers.append)
        await eventually(partial(has, answers, round * 4))
        await at_rest(runner)

    assert runner.threads <= 8


async def test_a_slow_call_holds_no_other(runner: ThreadRunner) -> None:
    gate = threading.Event()
    answers: list[object] = []

    runner.submit(lambda: gate.wait(60), answers.append)
    for number in range(100):
        runner.submit(partial(int, number), answers.append)
    await eventually(lambda: len(answers) == 100)
    gate.set()

    await eventually(lambda: len(answers) == 101)
    assert answers[-1] is True


async def test_a_context_variable_does_not_leak_from_call_to_call(runner: ThreadRunner) -> None:
    seen: list[str] = []
    word.set("outside")

    def look() -> str:
        before = word.get()
        word.set("left behind")
        return before

    for round in range(1, 4):
        runner.submit(look, seen.append)
        await eventually(partial(has, seen, round))
        await at_rest(runner)

    assert seen == ["none", "none", "none"]
    assert runner.threads == 1


async def test_threads_end_when_the_runner_is_closed(runner: ThreadRunner) -> None:
    answers: list[int] = []
    for _ in range(3):
        runner.submit(lambda: 1, answers.append)
    await eventually(lambda: len(answers) == 3)

    runner.close()

    await eventually(lambda: runner.threads == 0)


async def test_a_busy_thread_finishes_its_call_before_it_ends(runner: ThreadRunner) -> None:
    gate = threading.Event()
    answers: list[object] = []
    runner.submit(lambda: gate.wait(60), answers.append)

    runner.close()
    gate.set()

    await eventually(lambda: answers == [True] and runner.threads == 0)


@pytest.fixture
def no_more_threads(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Call it with True, and the system starts no thread; with False, and it does again."""
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    return lambda refused: monkeypatch.setattr(threading.Thread, "start", refuse if refused else start)


async def test_a_call_for_which_no_thread_can_be_started_is_refused_and_never_runs(
    runner: ThreadRunner, no_more_threads: Callable[[bool], None]
) -> None:
    answers: list[str] = []
    no_more_threads(True)
    for _ in range(3):
        with pytest.raises(RuntimeError, match="can't start new thread"):
            runner.submit(lambda: "refused", answers.append)
    assert runner.threads == 0
    no_more_threads(False)

    for _ in range(3):
        runner.submit(lambda: "later", answers.append)
    await eventually(lambda: len(answers) >= 3)

    assert answers == ["later"] * 3


async def test_calls_wait_for_the_threads_there_are_when_no_more_can_be_started(
    runner: ThreadRunner, no_more_threads: Callable[[bool], None]
) -> None:
    began, gate = threading.Event(), threading.Event()
    answers: list[object] = []

    def busy() -> bool:
        began.set()
        return gate.wait(60)

    runner.submit(busy, answers.append)
    await eventually(began.is_set)
    no_more_threads(True)

    for number in range(20):
        runner.submit(partial(int, number), answers.append)
    assert runner.threads == 1
    gate.set()
    await eventually(lambda: len(answers) == 21)

    assert answers == [True, *range(20)]
    assert runner.threads == 1


async def test_an_answer_that_cannot_be_handed_over_is_logged_and_holds_no_other(
    runner: ThreadRunner, caplog: pytest.LogCaptureFixture
) -> None:
    answers: list[int] = []

    def hand_over(answer: int) -> None:
        if answer == 0:
            raise ValueError("nobody takes zero")
        answers.append(answer)

    for number in range(100):
        runner.submit(partial(int, number), hand_over)
    await eventually(lambda: len(answers) == 99)

    [record] = [one for one in caplog.records if one.name == "staffa.runners"]
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "nobody takes zero"


def test_an_answer_that_comes_after_the_end_of_its_event_loop_is_dropped() -> None:
    runner = ThreadRunner("staffa test")
    gate, began = threading.Event(), threading.Event()
    answers: list[object] = []

    def call() -> bool:
        began.set()
        return gate.wait(60)

    async def submit() -> None:
        runner.submit(call, answers.append)
        await asyncio.to_thread(began.wait, 60)

    asyncio.run(submit())
    runner.close()
    gate.set()

    for thread in threading.enumerate():
        if thread.name.startswith("staffa test"):
            thread.join(60)
    assert answers == []
