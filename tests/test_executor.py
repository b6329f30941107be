"""The executor: one job in, one end out. A list of ends stands in for the producer."""

import asyncio
import contextvars
import logging
import threading
import types
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from datetime import timedelta
from itertools import count
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from staffa import Cancel, Discard, Job, RunningJob, Snooze, Worker, current_job, executor, job, telemetry
from staffa.backoff import MAX_DELAY
from staffa.engine import Ack
from staffa.errors import JobTimeout, UnknownWorker
from staffa.executor import MAX_ERROR, Execution, Executor, Finished, classify
from staffa.runners import ThreadRunner
from staffa.runtime import Runtime
from tests.support import eventually

AT = "2026-11-21 09:30:00.000000"

Body = Callable[[RunningJob], Any]
Hook = Callable[[Worker, Job], Any]
ids = count(1)
colour = contextvars.ContextVar("colour", default="none")


class Stage:
    """An executor with its threads, and the ends of what it ran."""

    def __init__(self) -> None:
        self.threads = ThreadRunner("staffa test")
        self.executor = Executor(cast("Runtime", SimpleNamespace(name="i", node="n")), self.threads)
        self.ends: list[Finished] = []

    def start(
        self, worker: str, args: str = "{}", *, attempt: int = 1, max_attempts: int = 20, doomed: bool = False
    ) -> Execution:
        row = (next(ids), worker, args, "{}", "[]", "[]", attempt, max_attempts, 0, AT, AT, AT)
        claimed = RunningJob.claimed(row, "default", ["node", "uuid"])
        return self.executor.start(claimed, self.ends.append, doomed=doomed)

    async def end(self, execution: Execution) -> Finished:
        """How it ended; and it ended once."""
        await eventually(lambda: execution.finished and self.ends)
        threads = self.threads
        await eventually(lambda: threads._idle == threads.threads)  # free for the next one
        [end] = [one for one in self.ends if one.execution is execution]
        return end

    async def run(self, worker: str, args: str = "{}", **options: Any) -> Finished:
        return await self.end(self.start(worker, args, **options))


@pytest.fixture
async def stage() -> AsyncGenerator[Stage, None]:
    stage = Stage()
    yield stage
    stage.threads.close()


def in_loop(body: Body, **options: Any) -> str:
    """A worker whose coroutine does this; its name."""

    async def perform(self: Worker, job: RunningJob, /) -> object:
        result = body(job)
        return await result if asyncio.iscoroutine(result) else result

    return _worker(perform, options)


def in_thread(body: Body, **options: Any) -> str:
    """A worker whose plain function does this; its name."""

    def perform(self: Worker, job: RunningJob, /) -> object:
        return body(job)

    return _worker(perform, options)


def _worker(perform: Any, options: dict[str, Any]) -> str:
    hooks = {key: options.pop(key) for key in ("timeout", "backoff") if callable(options.get(key))}
    name = f"executor.{next(ids)}"
    types.new_class(
        "Made", (Worker,), {"name": name, **options}, lambda body: body.update(perform=perform, **hooks)
    )
    return name


everywhere = pytest.mark.parametrize("where", [in_loop, in_thread])
Where = Callable[..., str]


def raising(error: BaseException) -> Body:
    def body(job: RunningJob) -> object:
        raise error

    return body


def returning(value: object) -> Body:
    return lambda job: value


def hook(answer: Callable[[Job], Any]) -> Hook:
    """A method of a worker that gives this for a job."""
    return lambda _, job: answer(job)


def ack(end: Finished) -> Ack:
    assert end.ack is not None
    return end.ack


def entry(end: Finished) -> dict[str, Any]:
    """What is added to the errors of the job."""
    text = ack(end).error
    assert text is not None
    return cast("dict[str, Any]", msgspec.json.decode(text))


def error(end: Finished) -> str:
    return str(entry(end)["error"])


# Values and outcomes.


@everywhere
@pytest.mark.parametrize("value", [None, 5, "text", [1], object(), False])
async def test_any_value_completes_the_job(stage: Stage, where: Where, value: object) -> None:
    end = await stage.run(where(returning(value)))

    assert ack(end) == Ack(end.execution.job.id, AT, "complete")
    assert end.value is value
    assert end.error is None


def plain(outcome: Exception) -> BaseException:
    return outcome


def in_a_group(outcome: Exception) -> BaseException:
    return ExceptionGroup("several", [ValueError("no"), outcome])


def in_a_group_of_groups(outcome: Exception) -> BaseException:
    return BaseExceptionGroup("deep", [SystemExit(), ExceptionGroup("inner", [outcome])])


OUTCOMES = [
    (Snooze(60), ("snooze", "scheduled", 60.0, None)),
    (Snooze(timedelta(hours=1)), ("snooze", "scheduled", 3600.0, None)),
    (Snooze(1e300), ("snooze", "scheduled", MAX_DELAY, None)),
    (Cancel("gone"), ("cancel", "cancelled", None, "Cancel: gone")),
    (Cancel({"code": 5}), ("cancel", "cancelled", None, "Cancel: {'code': 5}")),
    (Discard("no use"), ("discard", "discarded", None, "Discard: no use")),
]


@everywhere
@pytest.mark.parametrize("how", [raising, returning])
@pytest.mark.parametrize("wrap", [plain, in_a_group, in_a_group_of_groups])
@pytest.mark.parametrize(("outcome", "expected"), OUTCOMES)
async def test_an_outcome_means_the_same_returned_or_raised_alone_or_in_a_group(
    stage: Stage,
    where: Where,
    how: Callable[[BaseException], Body],
    wrap: Callable[[Exception], BaseException],
    outcome: Exception,
    expected: Any,
) -> None:
    end = await stage.run(where(how(wrap(outcome))))

    said = ack(end)
    assert (said.kind, said.state, said.delay, error(end) if said.error else None) == expected
    assert end.error is None


async def test_an_outcome_of_a_task_group_ends_the_job(stage: Stage) -> None:
    async def give_up() -> None:
        raise Discard("no use")

    async def body(_: RunningJob) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(give_up())
            group.create_task(asyncio.sleep(60))

    end = await stage.run(in_loop(body))

    assert ack(end).kind == "discard"


@everywhere
@pytest.mark.parametrize("value", [ValueError("no"), ExceptionGroup("several", [ValueError("no")])])
async def test_an_exception_that_is_returned_and_no_outcome_is_a_value_like_any_other(
    stage: Stage, where: Where, value: object
) -> None:
    end = await stage.run(where(returning(value)))

    assert ack(end).kind == "complete"


@pytest.mark.parametrize("subclass_of", [Cancel, Discard])
def test_outcomes_may_be_subclassed(subclass_of: type[Exception]) -> None:
    own = type("Own", (subclass_of,), {})

    said, problem = classify(_claimed(), None, own("why"))

    assert said.kind == subclass_of.__name__.lower()
    assert problem is None


async def _coroutine() -> None: ...
async def _asynchronous_generator() -> AsyncGenerator[int, None]:
    yield 1


def _generator() -> Any:
    yield 1


@everywhere
@pytest.mark.parametrize(
    ("make", "kind"),
    [(_coroutine, "coroutine"), (_generator, "generator"), (_asynchronous_generator, "async generator")],
)
async def test_work_that_was_returned_instead_of_done_fails_the_attempt(
    stage: Stage, where: Where, make: Callable[[], Any], kind: str
) -> None:
    async def forgot_to_await(_: RunningJob) -> object:
        return make()

    def forgets(_: RunningJob) -> object:
        return make()

    end = await stage.run(where(forgot_to_await if where is in_loop else forgets))

    assert error(end) == (
        f"TypeError: perform returned a {kind}, of which nothing has run: await it, or iterate over it"
    )


# Failures.


@everywhere
async def test_an_error_fails_the_attempt_and_the_job_is_tried_again_after_its_backoff(
    stage: Stage, where: Where
) -> None:
    problem = ValueError("no luck")

    end = await stage.run(where(raising(problem), backoff=7), attempt=3)

    assert (ack(end).kind, ack(end).state, ack(end).delay) == ("fail", "retryable", 7.0)
    assert end.error is problem


@everywhere
async def test_the_last_attempt_discards_the_job(stage: Stage, where: Where) -> None:
    end = await stage.run(where(raising(ValueError("no luck"))), attempt=5, max_attempts=5)

    assert (ack(end).kind, ack(end).state, ack(end).delay) == ("fail", "discarded", None)
    assert error(end).startswith("ValueError: no luck\n")


@everywhere
@pytest.mark.parametrize(
    "problem",
    [
        SystemExit(3),
        KeyboardInterrupt(),
        GeneratorExit(),
        asyncio.CancelledError("own"),
        BaseException("base"),
    ],
    ids=lambda problem: type(problem).__name__,
)
async def test_whatever_is_raised_fails_this_attempt_and_nothing_else__case_22(
    stage: Stage, where: Where, problem: BaseException
) -> None:
    neighbour = stage.start(in_loop(lambda _: asyncio.sleep(0.01)))

    end = await stage.run(where(raising(problem)))

    assert ack(end).state == "retryable"
    assert type(problem).__name__ in error(end).splitlines()[0]
    assert ack(await stage.end(neighbour)).kind == "complete"


@everywhere
async def test_a_stop_iteration_fails_the_attempt(stage: Stage, where: Where) -> None:
    end = await stage.run(where(raising(StopIteration(5))))

    assert ack(end).state == "retryable"


async def test_a_cancelled_error_of_a_subtask_is_the_jobs_own__case_23(stage: Stage) -> None:
    async def body(_: RunningJob) -> None:
        task = asyncio.create_task(asyncio.sleep(60))
        await asyncio.sleep(0)
        task.cancel()
        await task

    end = await stage.run(in_loop(body))

    assert ack(end).state == "retryable"
    assert error(end).startswith("asyncio.exceptions.CancelledError")


async def test_a_job_that_cancels_its_own_task_fails(stage: Stage) -> None:
    async def body(_: RunningJob) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(60)

    end = await stage.run(in_loop(body))

    assert ack(end).state == "retryable"
    assert "the job cancelled its own task" in error(end)


# What is kept of an error.


def deep(depth: int) -> None:
    if depth:
        deep(depth - 1)
    raise LookupError("lost\nand gone")


@everywhere
async def test_an_error_is_kept_as_one_line_and_then_the_traceback_without_our_frames(
    stage: Stage, where: Where
) -> None:
    def body(_: RunningJob) -> None:
        deep(2)

    end = await stage.run(where(body), attempt=4)

    banner, traceback, *rest = error(end).splitlines()
    frames = [line for line in rest if line.startswith("  File ")]
    assert banner == "LookupError: lost"
    assert traceback == "Traceback (most recent call last):"
    assert frames[-1].endswith("in deep")
    assert all(__file__ in frame for frame in frames)
    assert error(end).endswith("LookupError: lost\nand gone")
    assert entry(end)["attempt"] == 4


async def test_an_entry_has_the_three_keys_of_oban_with_the_moment_in_utc(stage: Stage) -> None:
    end = await stage.run(in_loop(raising(ValueError("no"))))

    assert set(entry(end)) == {"at", "attempt", "error"}
    assert len(entry(end)["at"]) == len("2026-11-21T09:30:00.000000Z")
    assert entry(end)["at"].endswith("Z")


async def test_the_cause_of_an_error_is_kept(stage: Stage) -> None:
    def body(_: RunningJob) -> None:
        try:
            deep(0)
        except LookupError as error:
            raise RuntimeError("above") from error

    end = await stage.run(in_loop(body))

    assert error(end).startswith("RuntimeError: above\n")
    assert "LookupError: lost" in error(end)
    assert "The above exception was the direct cause" in error(end)


class Odd(Exception):
    pass


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    ("problem", "banner"),
    [
        (Odd("own"), f"{__name__}.Odd: own"),
        (Odd(), f"{__name__}.Odd"),
        (KeyError("a"), "KeyError: 'a'"),
        (ValueError("nul \x00 lone \ud800"), "ValueError: nul \ufffd lone \ufffd"),
    ],
)
async def test_the_first_line_names_the_error(stage: Stage, problem: Exception, banner: str) -> None:
    end = await stage.run(in_loop(raising(problem)))

    assert error(end).splitlines()[0] == banner


async def test_an_error_whose_own_text_fails_fails_the_attempt_all_the_same(stage: Stage) -> None:
    end = await stage.run(in_loop(raising(Unspeakable())))

    assert ack(end).state == "retryable"
    assert error(end).startswith("RuntimeError: no words")


async def test_a_long_error_is_cut_in_its_middle(stage: Stage) -> None:
    end = await stage.run(in_loop(raising(ValueError("x" * 100_000))))

    assert error(end).startswith("ValueError: xxx")
    assert len(error(end)) < MAX_ERROR + 100
    assert "characters left out" in error(end)


async def test_args_that_cannot_be_decoded_fail_the_attempt(stage: Stage) -> None:
    @job(name="executor.decoded")
    async def decoded(n: int) -> None: ...

    end = await stage.run(decoded.worker.options.name, "{spoiled")

    assert ack(end).state == "retryable"
    assert error(end).startswith("msgspec.DecodeError: JSON is malformed")


async def test_args_that_do_not_fit_the_function_any_more_fail_the_attempt__case_65(stage: Stage) -> None:
    @job(name="executor.fitted")
    def fitted(n: int) -> None: ...

    end = await stage.run(fitted.worker.options.name, '{"m":1}')

    assert ack(end).state == "retryable"
    assert "unexpected keyword argument 'm'" in error(end).splitlines()[0]


# Backoff.


@pytest.mark.parametrize(
    ("said", "delay"), [(5, 5.0), (timedelta(minutes=1), 60.0), (-5, 0.0), (10**15, MAX_DELAY), (0, 0.0)]
)
async def test_a_backoff_is_seconds_or_a_timedelta_within_bounds(
    stage: Stage, said: Any, delay: float
) -> None:
    end = await stage.run(in_loop(raising(ValueError()), backoff=hook(lambda _: said)))

    assert ack(end).delay == delay


@pytest.mark.parametrize("said", [None, "60", float("nan"), float("inf"), True, object()])
async def test_a_backoff_that_gives_no_seconds_is_replaced_by_the_default(
    stage: Stage, said: object, caplog: pytest.LogCaptureFixture
) -> None:
    end = await stage.run(in_loop(raising(ValueError()), backoff=hook(lambda _: said)))

    assert 17 <= cast("float", ack(end).delay) <= 17 * 1.1
    assert "its backoff gave no seconds; the default is used" in caplog.text


async def test_a_backoff_that_raises_is_replaced_by_the_default(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(self: Worker, job: Job) -> float:
        raise ZeroDivisionError

    end = await stage.run(in_loop(raising(ValueError("the real error")), backoff=broken))

    assert 17 <= cast("float", ack(end).delay) <= 17 * 1.1
    assert error(end).startswith("ValueError: the real error")
    assert "its backoff failed; the default is used" in caplog.text


async def test_a_backoff_sees_the_attempt_that_failed(stage: Stage) -> None:
    end = await stage.run(
        in_loop(raising(ValueError()), backoff=hook(lambda job: job.attempt * 100)), attempt=3
    )

    assert ack(end).delay == 300.0


# Timeouts.


async def test_a_coroutine_that_takes_too_long_is_stopped_and_fails(stage: Stage) -> None:
    end = await stage.run(in_loop(lambda _: asyncio.sleep(60), timeout=0.01))

    assert isinstance(end.error, JobTimeout)
    assert (ack(end).kind, ack(end).state) == ("fail", "retryable")
    name = end.execution.job.worker
    assert error(end).splitlines()[0] == f"JobTimeout: {name} timed out after 0.01 s"


async def test_a_timeout_error_of_the_jobs_own_is_an_error_like_any_other(stage: Stage) -> None:
    async def body(_: RunningJob) -> None:
        async with asyncio.timeout(0):
            await asyncio.sleep(60)

    end = await stage.run(in_loop(body, timeout=60))

    assert type(end.error) is TimeoutError


async def test_the_value_of_a_coroutine_that_swallowed_its_timeout_counts_and_is_told_as_late(
    stage: Stage, late: list[int]
) -> None:
    async def body(_: RunningJob) -> str:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        await eventually(lambda: late)
        return "done after all"

    end = await stage.run(in_loop(body, timeout=0.01))

    assert ack(end).kind == "complete"
    assert end.value == "done after all"
    assert late == [end.execution.job.id]


async def test_a_thread_that_asks_in_time_is_stopped_by_its_timeout_and_not_called_late(
    stage: Stage, late: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "LATE_AFTER", 60.0)

    def body(job: RunningJob) -> None:
        while True:
            job.check_cancelled()
            threading.Event().wait(0.001)

    end = await stage.run(in_thread(body, timeout=0.01))

    assert isinstance(end.error, JobTimeout)
    assert error(end).startswith(f"JobTimeout: {end.execution.job.worker} timed out after 0.01 s")
    assert late == []


async def test_the_value_of_a_thread_that_came_late_counts(stage: Stage, late: list[int]) -> None:
    gate = threading.Event()
    execution = stage.start(in_thread(lambda _: gate.wait(60), timeout=0.01))
    await eventually(lambda: late)

    assert not execution.finished
    assert execution.job.cancelled
    gate.set()

    assert ack(await stage.end(execution)).kind == "complete"


async def test_a_job_that_is_in_time_is_not_late(stage: Stage, late: list[int]) -> None:
    for where in (in_loop, in_thread):
        end = await stage.run(where(returning(5), timeout=timedelta(seconds=30)))
        assert ack(end).kind == "complete"
        assert not end.execution.job.cancelled

    assert late == []


@everywhere
async def test_a_timeout_may_depend_on_the_job(stage: Stage, where: Where) -> None:
    asked: list[int] = []

    def timeout(self: Worker, job: Job) -> None:
        asked.append(job.attempt)

    end = await stage.run(where(returning(5), timeout=timeout), attempt=3)

    assert ack(end).kind == "complete"
    assert asked == [3]


@everywhere
@pytest.mark.parametrize(
    ("timeout", "banner"),
    [
        (hook(lambda job: 1 / (job.attempt - 1)), "ZeroDivisionError"),
        (hook(lambda _: 0), "timeout to give positive seconds or a timedelta, got: 0"),
        (hook(lambda _: "soon"), "timeout to give positive seconds or a timedelta, got: 'soon'"),
    ],
    ids=["raises", "zero", "text"],
)
async def test_a_timeout_that_makes_no_sense_fails_the_attempt(
    stage: Stage, where: Where, timeout: Hook, banner: str
) -> None:
    end = await stage.run(where(returning(5), timeout=timeout))

    assert ack(end).state == "retryable"
    assert banner in error(end).splitlines()[0]


async def test_a_timeout_that_fails_only_when_it_is_asked_again_does_no_harm(stage: Stage) -> None:
    answers = [0.01]

    def body(job: RunningJob) -> None:
        while True:
            job.check_cancelled()
            threading.Event().wait(0.001)

    end = await stage.run(in_thread(body, timeout=hook(lambda _: answers.pop())))

    assert isinstance(end.error, JobTimeout)


# Being stopped.


@pytest.mark.parametrize(("reason", "kind"), [("shutdown", "release"), ("cancelled", None), ("lost", None)])
class TestStopping:
    async def test_a_coroutine_is_interrupted(self, stage: Stage, reason: Any, kind: str | None) -> None:
        execution = stage.start(in_loop(lambda _: asyncio.sleep(60)))
        await eventually(lambda: execution.started_at)

        execution.stop(reason)
        end = await stage.end(execution)

        assert (end.ack and end.ack.kind, end.reason) == (kind, reason)
        assert execution.job.cancelled

    async def test_a_coroutine_that_has_not_begun_never_does__case_62(
        self, stage: Stage, reason: Any, kind: str | None
    ) -> None:
        began: list[int] = []
        execution = stage.start(in_loop(lambda job: began.append(job.id)))

        execution.stop(reason)
        end = await stage.end(execution)
        assert execution.task is not None
        await asyncio.wait([execution.task])

        assert (end.ack and end.ack.kind, end.reason) == (kind, reason)
        assert began == []

    async def test_an_error_on_the_way_out_changes_nothing(
        self, stage: Stage, reason: Any, kind: str | None
    ) -> None:
        async def body(_: RunningJob) -> None:
            try:
                await asyncio.sleep(60)
            finally:
                raise ValueError("in its clean-up")

        execution = stage.start(in_loop(body))
        await eventually(lambda: execution.started_at)

        execution.stop(reason)
        end = await stage.end(execution)

        assert (end.ack and end.ack.kind, end.reason) == (kind, reason)

    async def test_a_thread_that_asks_ends(self, stage: Stage, reason: Any, kind: str | None) -> None:
        def body(job: RunningJob) -> None:
            while True:
                job.check_cancelled()
                threading.Event().wait(0.001)

        execution = stage.start(in_thread(body))
        await eventually(lambda: execution.started_at)

        execution.stop(reason)
        end = await stage.end(execution)

        assert (end.ack and end.ack.kind, end.reason) == (kind, reason)

    @everywhere
    async def test_a_job_that_finishes_its_work_after_all_has_done_it(
        self, stage: Stage, where: Where, reason: Any, kind: str | None
    ) -> None:
        gate = threading.Event()

        async def stubborn(_: RunningJob) -> int:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(60)
            return 5

        def deaf(_: RunningJob) -> int:
            gate.wait(60)
            return 5

        execution = stage.start(where(stubborn if where is in_loop else deaf))
        await eventually(lambda: execution.started_at)

        execution.stop(reason)
        gate.set()
        end = await stage.end(execution)

        assert (ack(end).kind, end.value) == ("complete", 5)


async def test_only_the_first_stop_counts(stage: Stage) -> None:
    execution = stage.start(in_loop(lambda _: asyncio.sleep(60)))
    await eventually(lambda: execution.started_at)

    execution.stop("cancelled")
    execution.stop("shutdown")

    assert (await stage.end(execution)).reason == "cancelled"
    execution.stop("lost")
    assert len(stage.ends) == 1


async def test_a_coroutine_that_swallows_its_cancellation_is_cancelled_again_and_then_left_to_itself__case_23(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(executor, "RECANCEL_AFTER", 0.001)
    swallowed: list[int] = []
    gate = asyncio.Event()

    async def body(_: RunningJob) -> str:
        while not gate.is_set():
            try:
                await gate.wait()
            except asyncio.CancelledError:
                swallowed.append(1)
        return "at last"

    execution = stage.start(in_loop(body))
    await eventually(lambda: execution.started_at)
    execution.stop("shutdown")
    await eventually(lambda: execution.abandoned)

    assert len(swallowed) == 3
    assert not execution.finished
    assert "swallows its cancellation" in caplog.text
    gate.set()
    assert ack(await stage.end(execution)).kind == "complete"


# Where a job is known to run.


def _is_current(job: RunningJob) -> bool:
    return current_job() is job


@everywhere
async def test_the_current_job_is_known_in_a_coroutine_and_in_a_thread_and_nowhere_else(
    stage: Stage, where: Where
) -> None:
    end = await stage.run(where(_is_current))

    assert end.value is True
    assert current_job() is None


async def test_what_a_job_starts_knows_it_too(stage: Stage) -> None:
    async def look() -> int | None:
        running = current_job()
        return running.id if running else None

    async def body(job: RunningJob) -> bool:
        return (
            await asyncio.create_task(look())
            == job.id
            == await asyncio.to_thread(lambda: current_job() and job.id)
        )

    assert (await stage.run(in_loop(body))).value is True


@everywhere
async def test_context_variables_do_not_leak_from_job_to_job(stage: Stage, where: Where) -> None:
    def body(_: RunningJob) -> str:
        before = colour.get()
        colour.set("red")
        return before

    worker = where(body)

    assert [(await stage.run(worker)).value for _ in range(3)] == ["none", "none", "none"]
    assert colour.get() == "none"
    assert stage.threads.threads <= 1


async def test_a_coroutine_runs_in_the_event_loop_and_a_plain_function_never(stage: Stage) -> None:
    here = threading.get_ident()

    assert (await stage.run(in_loop(lambda _: threading.get_ident()))).value == here
    assert (await stage.run(in_thread(lambda _: threading.get_ident()))).value != here


async def test_a_task_is_named_by_its_job(stage: Stage) -> None:
    execution = stage.start(in_loop(returning(5)))

    assert execution.task is not None
    assert execution.task.get_name() == f"staffa job {execution.job.id} {execution.job.worker}"
    await stage.end(execution)


# Workers that cannot be had.


class Needy(Worker):
    def __init__(self, mailer: object) -> None:
        self.mailer = mailer

    def perform(self, job: Job) -> object: ...


async def test_a_job_whose_worker_is_unknown_is_given_back_without_using_up_the_attempt__case_64(
    stage: Stage,
) -> None:
    end = await stage.run("executor.nowhere")

    assert (ack(end).kind, ack(end).state, end.reason) == ("release", "available", "unknown worker")
    assert end.execution.unknown is not None
    assert "unknown worker 'executor.nowhere'" in end.execution.unknown


async def test_a_job_whose_worker_nobody_knows_fails_with_the_reason(stage: Stage) -> None:
    end = await stage.run("executor.nowhere", doomed=True)

    assert isinstance(end.error, UnknownWorker)
    assert ack(end).state == "retryable"
    assert error(end).startswith("UnknownWorker: unknown worker 'executor.nowhere'")


async def test_a_worker_whose_class_cannot_be_made_fails_the_attempt_and_not_the_queue(stage: Stage) -> None:
    end = await stage.run(Needy.options.name)

    assert ack(end).state == "retryable"
    assert "missing 1 required positional argument: 'mailer'" in error(end)


# Telling.


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The ids of the jobs that were told to be late."""
    seen: list[int] = []
    monkeypatch.setattr(executor, "LATE_AFTER", 0.01)
    telemetry.attach("test-late", lambda _, data: seen.append(data["job"].id), ["job.late"])
    yield seen
    telemetry.detach("test-late")


async def test_a_start_is_told_before_the_first_line_runs(stage: Stage) -> None:
    seen: list[Any] = []
    telemetry.attach("test-start", lambda _, data: seen.append(data["job"]), ["job.start"])
    try:
        end = await stage.run(in_loop(lambda job: seen == [job]))
    finally:
        telemetry.detach("test-start")

    assert end.value is True


async def test_a_handler_that_fails_hurts_no_job(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)

    def broken(*_: object) -> None:
        raise RuntimeError("broken")

    telemetry.attach("test-broken", broken)
    try:
        ends = [await stage.run(where(returning(5))) for where in (in_loop, in_thread)]
    finally:
        telemetry.detach("test-broken")

    assert [ack(end).kind for end in ends] == ["complete", "complete"]


# Classifying.


def _claimed(attempt: int = 1, max_attempts: int = 20) -> RunningJob:
    row = (next(ids), "a.B", "{}", "{}", "[]", "[]", attempt, max_attempts, 0, AT, AT, AT)
    return RunningJob.claimed(row, "default", ["node", "uuid"])


def test_every_ack_carries_the_token_of_its_claim() -> None:
    for ended in (Snooze(1), Cancel(), Discard(), ValueError()):
        claimed = _claimed()
        said, _ = classify(claimed, None, ended)
        assert (said.id, said.token) == (claimed.id, AT)


def test_a_snooze_on_the_last_attempt_is_still_a_snooze() -> None:
    assert classify(_claimed(20, 20), None, Snooze(5))[0].kind == "snooze"


def test_without_a_worker_the_backoff_is_the_default() -> None:
    said, _ = classify(_claimed(), None, ValueError())

    assert 17 <= cast("float", said.delay) <= 17 * 1.1


class Bottomless(Exception):
    """An exception that cannot be shown."""

    def __str__(self) -> str:
        raise Bottomless


def _look_away(_: object) -> Any:
    raise RuntimeError("look away")


# A value that does not let itself be looked at, like a proxy outside of its context.
Elusive = type("Elusive", (), {"__class__": property(_look_away)})


async def test_a_job_ends_whatever_its_error_does_to_those_who_look_at_it(stage: Stage) -> None:
    end = await stage.run(in_loop(raising(Bottomless())))

    assert ack(end).state == "retryable"
    assert "cannot be described" in error(end)


async def test_a_job_ends_whatever_its_value_does_to_those_who_look_at_it(stage: Stage) -> None:
    end = await stage.run(in_loop(returning(Elusive())))

    assert ack(end).kind in ("complete", "fail")
