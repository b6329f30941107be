"""Runs one job: resolve its worker, perform it, classify how it ended.

What comes out is a `Finished`: the job and the `Ack` that its row shall get. Storing acks is the producer's
part, for they travel in batches.
"""

import asyncio
import inspect
import logging
import traceback
from collections.abc import Awaitable, Callable, Iterator
from types import TracebackType
from typing import Any, Literal, cast

from staffa import backoff, clock, payload, telemetry
from staffa.engine import Ack
from staffa.errors import JobCancelled, JobTimeout, UnknownWorker
from staffa.jobs import RunningJob, current
from staffa.options import seconds, shown
from staffa.outcome import Cancel, Discard, Snooze
from staffa.registry import resolve
from staffa.runners import ThreadRunner
from staffa.runtime import Runtime
from staffa.worker import Worker

__all__ = ["Execution", "Executor", "Finished", "StopReason", "brief", "describe"]

log = logging.getLogger("staffa.executor")

MAX_ERROR = 16_000
RECANCELS, RECANCEL_AFTER = 3, 1.0

# Seconds that a job gets to notice that its time is up before it is called late.
LATE_AFTER = 1.0

_INDESCRIBABLE = "the job ended with a value or an error that cannot be described"

StopReason = Literal["shutdown", "cancelled", "lost", "timeout"]

_STOP_TEXTS: dict[StopReason, str] = {
    "shutdown": "the node is shutting down",
    "cancelled": "the job was cancelled",
    "lost": "the job's claim was lost: another node may run it",
    "timeout": "the attempt ran past its timeout",
}


class Finished:
    """How a job ended: its ack (none when its row is not ours to write), and the value or error behind it."""

    __slots__ = ("ack", "error", "execution", "reason", "value")

    def __init__(
        self,
        execution: "Execution",
        ack: Ack | None,
        value: object = None,
        error: BaseException | None = None,
        reason: str | None = None,
    ) -> None:
        self.execution = execution
        self.ack = ack
        self.value = value
        self.error = error
        self.reason = reason


class Execution:
    """A job that has been claimed: running, or finished with its ack on the way."""

    __slots__ = (
        "_late",
        "abandoned",
        "cancels",
        "done",
        "ended_at",
        "finished",
        "job",
        "limit",
        "started_at",
        "stop_reason",
        "task",
        "unknown",
        "worker",
    )

    def __init__(self, job: RunningJob, done: Callable[[Finished], None]) -> None:
        self.job = job
        self.done = done
        self.worker: Worker | None = None
        self.task: asyncio.Task[None] | None = None
        self.started_at = 0.0
        self.ended_at = 0.0
        self.limit = 0.0
        self.unknown: str | None = None
        self.stop_reason: StopReason | None = None
        self.finished = False
        self.abandoned = False
        self.cancels = 0
        self._late: asyncio.TimerHandle | None = None

    def stop(self, reason: StopReason) -> None:
        """Ask the job to end: interrupts a coroutine, tells a thread. What it writes depends on the reason."""
        if self.finished or self.stop_reason is not None:
            return
        self.stop_reason = reason
        self.job._stop_reason = _STOP_TEXTS[reason]
        if self.task is None:
            return
        if not self.started_at:  # a task cancelled before its first step never runs a line
            self.task.cancel()
            self.finish(_stopped(self))
        else:
            self._cancel()

    def finish(self, finished: Finished) -> None:
        """The job has ended; only the first end counts."""
        if not self.finished:
            self.finished = True
            self.ended_at = clock.monotonic()
            if self._late is not None:
                self._late.cancel()
            self.done(finished)

    def _cancel(self) -> None:
        # A coroutine may swallow a cancellation: it is repeated, then the job is left to itself, like a thread.
        if self.finished or self.task is None:
            return
        if self.cancels == RECANCELS:
            self.abandoned = True
            log.error("%s swallows its cancellation; it keeps its place until it ends", describe(self.job))
            return
        self.cancels += 1
        self.task.cancel()
        asyncio.get_running_loop().call_later(RECANCEL_AFTER, self._cancel)


class Executor:
    """Runs jobs of all queues of an instance."""

    def __init__(self, runtime: Runtime, threads: ThreadRunner) -> None:
        self.runtime = runtime
        self.threads = threads

    def start(self, job: RunningJob, done: Callable[[Finished], None], *, doomed: bool = False) -> Execution:
        """Start a claimed job; `done` is called in this event loop when it has ended.

        Args:
            job: As claimed.
            done: Receives the end.
            doomed: No node knows its worker: let it fail, instead of giving it back.
        """
        execution = Execution(job, done)
        try:
            execution.worker = resolve(job.worker)
        except UnknownWorker as error:
            execution.unknown = str(error)
            if doomed:
                self._end(execution, error=error)
            else:
                execution.finish(Finished(execution, _release(job), error=error, reason="unknown worker"))
            return execution
        except Exception as error:  # its class cannot be made: a fault of this attempt, never of the queue
            self._end(execution, error=error)
            return execution
        if telemetry.listening("job.start"):
            telemetry.emit(
                "job.start", {"instance": self.runtime.name, "node": self.runtime.node, "job": job}
            )
        if execution.worker.options.runner == "async":
            name = f"staffa job {job.id} {job.worker}"
            execution.task = asyncio.create_task(self._perform(execution, execution.worker), name=name)
        else:
            self._start_in_thread(execution, execution.worker)
        return execution

    # In the event loop.

    async def _perform(self, execution: Execution, worker: Worker) -> None:
        job = execution.job
        execution.started_at = clock.monotonic()
        current.set(job)
        try:
            limit = _timeout(worker, job)
            perform = cast("Callable[[RunningJob], Awaitable[object]]", worker.perform)
            if limit is None:
                value = await perform(job)
            else:
                self._watch_late(execution, limit, limit + LATE_AFTER)
                value = await self._within(limit, perform, job)
        except GeneratorExit as error:
            if not _is_current(execution.task):
                raise  # the event loop is being torn down; there is nobody left to tell
            self._end(execution, error=error)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling() > 0:
                self._interrupted(execution)
            else:
                self._end(execution, error=error)
        except BaseException as error:
            if execution.cancels:  # what it raised instead, when we cancelled it
                self._interrupted(execution)
            else:
                self._end(execution, error=error)
        else:
            self._end(execution, value=value)

    async def _within(
        self, limit: float, perform: Callable[[RunningJob], Awaitable[object]], job: RunningJob
    ) -> object:
        deadline = asyncio.timeout(limit)
        try:
            async with deadline:
                return await perform(job)  # a value that comes late counts: the job did finish
        except TimeoutError as error:
            if deadline.expired():
                raise _timed_out(job, limit) from error
            raise

    def _interrupted(self, execution: Execution) -> None:
        if execution.stop_reason in ("shutdown", "cancelled", "lost"):
            execution.finish(_stopped(execution))
        else:  # somebody cancelled our task who is not us: the job did, through asyncio.current_task()
            self._end(execution, error=asyncio.CancelledError("the job cancelled its own task"))

    # In threads.

    def _start_in_thread(self, execution: Execution, worker: Worker) -> None:
        job = execution.job
        try:
            limit = _timeout(worker, job)
        except Exception as error:
            self._end(execution, error=error)
            return
        if limit is not None:
            execution.limit = limit
            execution._late = asyncio.get_running_loop().call_later(limit, self._time_is_up, execution, limit)
        try:
            self.threads.submit(
                lambda: self._perform_in_thread(execution, worker),
                lambda end: self._thread_ended(execution, end),
            )
        except Exception as error:  # there is no thread to be had
            self._end(execution, error=error)

    def _perform_in_thread(self, execution: Execution, worker: Worker) -> tuple[object, BaseException | None]:
        execution.started_at = clock.monotonic()
        current.set(execution.job)
        try:
            return worker.perform(execution.job), None
        except BaseException as error:
            return None, error

    def _thread_ended(self, execution: Execution, end: tuple[object, BaseException | None]) -> None:
        value, error = end
        if isinstance(error, JobCancelled) and execution.stop_reason == "timeout":
            error = _timed_out(execution.job, execution.limit)
        elif isinstance(error, JobCancelled) and execution.stop_reason is not None:
            execution.finish(_stopped(execution))
            return
        self._end(execution, value=value, error=error)

    def _time_is_up(self, execution: Execution, limit: float) -> None:
        if not execution.finished:
            execution.stop("timeout")
            self._watch_late(execution, limit, LATE_AFTER)

    def _watch_late(self, execution: Execution, limit: float, after: float) -> None:
        loop = asyncio.get_running_loop()
        execution._late = loop.call_later(after, self._note_late, execution.job, limit)

    def _note_late(self, job: RunningJob, limit: float) -> None:
        if not telemetry.logged("job.late"):
            log.warning("%s runs past its timeout of %g s; see job.check_cancelled()", describe(job), limit)
        if telemetry.listening("job.late"):
            data = {"instance": self.runtime.name, "node": self.runtime.node, "job": job, "timeout": limit}
            telemetry.emit("job.late", data)

    # How it ended.

    def _end(self, execution: Execution, *, value: object = None, error: BaseException | None = None) -> None:
        try:
            finished = self._ended(execution, value, error)
        except BaseException as broken:  # a value or an exception whose own class misbehaves
            log.error("%s: its end cannot be described", describe(execution.job))
            finished = _ended_somehow(execution, broken)
        execution.finish(finished)

    def _ended(self, execution: Execution, value: object, error: BaseException | None) -> Finished:
        if error is None and value is not None:
            error = _returned(value)
        job = execution.job
        if error is None:
            return Finished(execution, Ack(job.id, job._token, "complete"), value=value)
        ack, failure = classify(job, execution.worker, error)
        return Finished(execution, ack, error=failure)


def classify(
    job: RunningJob, worker: Worker | None, ended: BaseException
) -> tuple[Ack, BaseException | None]:
    """The ack for a job that ended with an outcome or an error, and the error if it was one."""
    outcome = _outcome(ended)
    match outcome:
        case Snooze():
            delay = backoff.clamp(outcome.seconds)
            return Ack(job.id, job._token, "snooze", "scheduled", delay), None
        case Cancel():
            return Ack(
                job.id, job._token, "cancel", "cancelled", error=_entry(job, _said("Cancel", outcome.reason))
            ), None
        case Discard():
            return Ack(
                job.id,
                job._token,
                "discard",
                "discarded",
                error=_entry(job, _said("Discard", outcome.reason)),
            ), None
        case None:
            return _failed(job, worker, ended), ended


def _failed(job: RunningJob, worker: Worker | None, error: BaseException) -> Ack:
    entry = _entry(job, _described(error))
    if job.attempt >= job.max_attempts:
        return Ack(job.id, job._token, "fail", "discarded", error=entry)
    return Ack(job.id, job._token, "fail", "retryable", _backoff(job, worker), entry)


def _stopped(execution: Execution) -> Finished:
    """The end of a job that did as it was told: given back at a shutdown, else its row is not ours to write."""
    ack = _release(execution.job) if execution.stop_reason == "shutdown" else None
    return Finished(execution, ack, reason=execution.stop_reason)


def _ended_somehow(execution: Execution, broken: BaseException) -> Finished:
    """A job must end, whatever its value or error does to those who look at it."""
    try:
        return Finished(execution, _failed(execution.job, execution.worker, broken), error=broken)
    except BaseException:
        return Finished(execution, _last_resort(execution.job), error=RuntimeError(_INDESCRIBABLE))


def _last_resort(job: RunningJob) -> Ack:
    at = clock.now().isoformat(timespec="microseconds").replace("+00:00", "Z")
    entry = payload.encode({"at": at, "attempt": job.attempt, "error": _INDESCRIBABLE})
    left = isinstance(cast("object", job.max_attempts), int) and job.attempt < job.max_attempts
    return Ack(
        job.id, job._token, "fail", "retryable" if left else "discarded", 60.0 if left else None, entry
    )


def _release(job: RunningJob) -> Ack:
    return Ack(job.id, job._token, "release", "available")


def _returned(value: object) -> BaseException | None:
    """What a returned value says, if it is not success: an outcome, or work that nobody has run."""
    if isinstance(value, BaseException):
        return value if _outcome(value) is not None else None
    if inspect.iscoroutine(value) or inspect.isgenerator(value):
        value.close()
    elif not inspect.isasyncgen(value):
        return None
    kind = type(value).__name__.replace("_", " ")
    return TypeError(f"perform returned a {kind}, of which nothing has run: await it, or iterate over it")


def _outcome(error: BaseException) -> Snooze | Cancel | Discard | None:
    """The outcome that was returned or raised, perhaps inside an exception group."""
    for one in _leaves(error):
        if isinstance(one, (Snooze, Cancel, Discard)):
            return one
    return None


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for one in cast("BaseExceptionGroup[BaseException]", error).exceptions:
            yield from _leaves(one)
    else:
        yield error


def _timeout(worker: Worker, job: RunningJob) -> float | None:
    if not worker.options.asks_timeout:
        return worker.options.timeout
    said = worker.timeout(job)
    if said is None:
        return None
    limit = seconds(said)
    if limit is None or limit <= 0:
        raise ValueError(
            f"expected {job.worker}.timeout to give positive seconds or a timedelta, got: {shown(said)}"
        )
    return limit


def _backoff(job: RunningJob, worker: Worker | None) -> float:
    if worker is not None:
        try:
            delay = seconds(worker.backoff(job))
            if delay is not None:
                return backoff.clamp(delay)
            log.error("%s: its backoff gave no seconds; the default is used", describe(job))
        except Exception:
            log.exception("%s: its backoff failed; the default is used", describe(job))
    return backoff.clamp(backoff.attempt_delay(job.attempt, job.max_attempts))


def _is_current(task: "asyncio.Task[None] | None") -> bool:
    try:
        return asyncio.current_task() is task
    except RuntimeError:
        return False


def _timed_out(job: RunningJob, limit: float) -> JobTimeout:
    return JobTimeout(f"{job.worker} timed out after {limit:g} s")


def _entry(job: RunningJob, text: str) -> str:
    at = clock.now().isoformat(timespec="microseconds").replace("+00:00", "Z")
    return payload.encode({"at": at, "attempt": job.attempt, "error": payload.storable(text, MAX_ERROR)})


def _said(kind: str, reason: Any) -> str:
    return f"{kind}: {reason if isinstance(reason, str) else shown(reason, MAX_ERROR)}"


def _described(error: BaseException) -> str:
    """One line that says what happened, then the traceback, without our own frames at its top."""
    kind = type(error)
    name = (
        kind.__qualname__
        if kind.__module__ in ("builtins", "staffa.errors")
        else f"{kind.__module__}.{kind.__qualname__}"
    )
    lines = str(error).splitlines()
    banner = f"{name}: {lines[0]}" if lines else name
    trace = _users_frames(error.__traceback__)
    if trace is not None:
        return f"{banner}\n{''.join(traceback.format_exception(kind, error, trace))}".rstrip()
    return "\n".join([banner, *lines[1:], *_where_interrupted(error)])


def _users_frames(trace: TracebackType | None) -> TracebackType | None:
    while trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith("staffa."):
        trace = trace.tb_next
    return trace


def _where_interrupted(error: BaseException) -> list[str]:
    """For an error of our own (a timeout): the lines of the job that were interrupted by it."""
    cause = error.__cause__ or error.__context__
    while cause is not None:
        trace = _users_frames(cause.__traceback__)
        while trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith("asyncio."):
            trace = _users_frames(trace.tb_next)
        if trace is not None:
            return ["It was interrupted here:", *"".join(traceback.format_tb(trace)).splitlines()]
        cause = cause.__cause__ or cause.__context__
    return []


def brief(error: BaseException) -> str:
    """An error as log lines show it."""
    try:
        return " ".join(f"{type(error).__name__}: {error}".split())[:500]
    except Exception:
        return type(error).__name__


def describe(job: RunningJob) -> str:
    """A job as log lines name it."""
    return f"job {job.id} ({job.worker}, queue {job.queue}, attempt {job.attempt} of {job.max_attempts})"
