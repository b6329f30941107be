"""A producer claims and runs the jobs of one queue on one node: the hot path.

Its cycle is one round trip: the acks that have gathered and the claim of the next jobs go to the database
together. A job counts against the limit until the statement with its ack has succeeded; that same statement
may already fill its place.
"""

import asyncio
import logging
import uuid
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any, Literal

from staffa import backoff, clock, payload, telemetry
from staffa.engine import Ack, Beat, Claim, Lost
from staffa.errors import DatabaseError, DatabaseUnavailable
from staffa.executor import Execution, Executor, Finished, StopReason, brief, describe
from staffa.jobs import RunningJob
from staffa.options import check
from staffa.runtime import Runtime
from staffa.service import Loop
from staffa.steps import Steps

__all__ = ["Producer", "Queue"]

log = logging.getLogger("staffa.producer")

# A claim asks for at most so many jobs, however large the limit: the first must not wait for the last.
MAX_CLAIM = 1_000

# A node that has not beaten for so many seconds claims nothing: its jobs are about to be taken from it.
CLAIM_WITHIN = 12.0

# Seconds that a stop leaves to the database for the last outcomes.
STORE_WITHIN = 5.0

# Outcomes that are stored apart from the claims: how many at a time, and how long one waits for its next try; the
# first part of that in its place, so that many together do not hammer a broken database.
APART, PAUSE, LONGEST_PAUSE = 4, 0.25, 5.0

# Seconds between two looks at the queue when nobody wakes the producer: the net under lost messages.
REFRESH = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """The options of one queue on one node.

    Example:
        ```python
        from staffa import Queue, Staffa

        app = Staffa("sqlite:///jobs.db", queues={"default": 10, "reports": Queue(limit=2, paused=True)})
        ```

    Args:
        limit: How many jobs of the queue may run at the same time on this node.
        paused: Whether it starts without claiming.
        ack: `"batch"` stores outcomes together with the next claim; `"immediate"` stores each at once, for
            work that must not be repeated when the process dies within milliseconds of its end.
    """

    limit: int
    paused: bool = False
    ack: Literal["batch", "immediate"] = "batch"

    def __post_init__(self) -> None:
        whole = isinstance(self.limit, int) and not isinstance(self.limit, bool)  # pyright: ignore[reportUnnecessaryIsInstance]  # untyped callers
        check("limit", self.limit, ok=whole and self.limit > 0, want="a positive integer")
        check("paused", self.paused, ok=self.paused in (True, False), want="True or False")
        check("ack", self.ack, ok=self.ack in ("batch", "immediate"), want="'batch' or 'immediate'")


class Producer(Loop):
    """One queue of one node."""

    longest_pause = LONGEST_PAUSE

    def __init__(
        self,
        runtime: Runtime,
        executor: Executor,
        queue: str,
        options: Queue,
        *,
        grace_period: float,
        look_now: Callable[[], None],
    ) -> None:
        super().__init__(REFRESH, f"producer {queue}")
        self.runtime = runtime
        self.executor = executor
        self.queue = queue
        self.limit = options.limit
        self.paused = options.paused
        self.ack_mode = options.ack
        self.grace_period = grace_period
        self.exits = False
        self.left_running = False
        self.uuid = str(uuid.uuid4())
        self.started_at = clock.now()
        # Claimed and not yet acked, by id. The heartbeat's thread reads this and the two counters.
        self.held: dict[int, Execution] = {}
        self.claims_begun = 0
        self.claims_ended = 0
        # Workers that this node cannot resolve, and those that no node can.
        self.unknown: dict[str, str] = {}
        self.doomed: frozenset[str] = frozenset()
        self._finished: list[Finished] = []
        self._unstored: list[int] = []
        self._immediate: set[asyncio.Task[None]] = set()
        # What waits to be stored by itself after it has failed together with others, and why it does.
        self._apart: dict[Execution, str] = {}
        self._places = asyncio.Semaphore(APART)
        self._draining = False
        self._drained = asyncio.Event()
        self._hurry = asyncio.Event()
        self._look_now = look_now
        self._unlisten: list[Callable[[], None]] = []

    @property
    def running(self) -> bool:
        """Whether it claims or still has jobs."""
        return self._task is not None

    @property
    def hungry(self) -> bool:
        """Whether it would claim a job if there were one."""
        return not self.paused and not self._draining and len(self.held) < self.limit

    def beat(self) -> Beat:
        """Its row, as the heartbeat writes it."""
        meta: dict[str, Any] = {"limit": self.limit, "paused": self.paused, "running": len(self.held)}
        if self.unknown:
            meta["unknown"] = sorted(self.unknown)
        return Beat(self.uuid, self.runtime.name, self.runtime.node, self.queue, meta)

    async def opened(self) -> None:
        """Listen for jobs and signals."""
        self._draining = False
        self._drained, self._hurry = asyncio.Event(), asyncio.Event()
        self._places = asyncio.Semaphore(APART)
        listen = self.runtime.notifier.listen
        self._unlisten = [
            listen("insert", self._on_insert),
            listen("signal", self._on_signal),
            self.runtime.notifier.on_gap(self.wake),
        ]

    async def closed(self) -> None:
        """Listen no more."""
        for unlisten in self._unlisten:
            unlisten()

    async def tick(self) -> None:
        """Cycle until there is nothing to store and nothing to claim."""
        more = True
        while more:
            more = await self._cycle()
            await asyncio.sleep(0)  # let the jobs that are ready run first: their acks go along

    def interrupt(self, id: int, reason: StopReason, token: str | None = None) -> None:
        """Stop a running job, when it is one of ours, and, with a token, when it still runs under that claim."""
        execution = self.held.get(id)
        if execution is not None and token in (None, execution.job._token):
            execution.stop(reason)

    # One cycle.

    async def _cycle(self) -> bool:
        finished, self._finished = self._finished, []
        demand = self._demand(len(finished))
        if not finished and demand <= 0:
            return False
        # Until every claimed job is held, the heartbeat must not take those that are not for lost ones.
        self.claims_begun += 1
        try:
            claim = await self._round_trip(finished, demand)
            self._stored(finished, claim.lost)
            for job in claim.jobs:
                self._start(job)
        finally:
            self.claims_ended += 1
            self._check_drained()
        return claim.full or bool(self._finished)

    def _demand(self, leaving: int) -> int:
        if self.paused or self._draining or not self.runtime.pulse.beat_within(CLAIM_WITHIN):
            return 0
        return min(self.limit - len(self.held) + leaving, MAX_CLAIM)

    async def _round_trip(self, finished: list[Finished], demand: int) -> Claim:
        if telemetry.listening_to_span("producer"):
            data = {**self._who(), "queue": self.queue, "acks": len(finished), "demand": demand}
            with telemetry.span("producer", data) as extra:
                claim = await self._ack_and_claim(finished, demand)
                extra["claimed"] = len(claim.jobs)
                return claim
        return await self._ack_and_claim(finished, demand)

    async def _ack_and_claim(self, finished: list[Finished], demand: int) -> Claim:
        acks = [one.ack for one in finished if one.ack is not None]
        unknown = [name for name in self.unknown if name not in self.doomed] if self.unknown else ()
        steps = self.runtime.engine.ack_and_claim(
            self.beat() if self.unknown else self._beat(), acks, demand, unknown
        )
        try:
            return await self._run_or_one_by_one(steps, finished)
        except BaseException as error:
            # Nobody knows what of it was done. Acks are sent again; jobs that were claimed will be missed.
            if acks and isinstance(error, DatabaseError):
                # One row that somebody else holds must not stop the queue: each waits for its own.
                for one in finished:
                    self._ack_apart(one, str(error))
            else:
                self._finished[:0] = finished
            asyncio.get_running_loop().call_soon(self._look_now)  # when this claim counts as ended
            raise

    async def _run_or_one_by_one(self, steps: Steps[Claim], finished: list[Finished]) -> Claim:
        try:
            return await self.runtime.run(steps)
        except DatabaseUnavailable:
            raise
        except DatabaseError:
            if not finished:
                raise
            log.exception(
                "queue %s: %d outcomes were refused together; storing them one by one",
                self.queue,
                len(finished),
            )
            return Claim([], await self._one_by_one(finished), full=True)

    def _beat(self) -> Beat:
        return Beat(self.uuid, self.runtime.name, self.runtime.node, self.queue, _NO_META)

    async def _one_by_one(self, finished: list[Finished]) -> list[Lost]:
        """Store each outcome by itself, so that a bad one holds nobody else; it becomes a plain failure."""
        lost: list[Lost] = []
        for one in finished:
            if one.ack is not None:
                try:
                    lost += await self._ack(one.ack)
                except DatabaseUnavailable:
                    raise
                except DatabaseError as error:
                    log.exception("%s: its outcome cannot be stored", describe(one.execution.job))
                    one.ack = _storable_ack(one.execution.job, one.ack, error)
                    lost += await self._ack(one.ack)
        return lost

    async def _ack(self, ack: Ack) -> list[Lost]:
        return await self.runtime.run(self.runtime.engine.ack_jobs(self._beat(), [ack]))

    # Jobs that start.

    def _start(self, job: RunningJob) -> None:
        older = self.held.get(job.id)
        if older is not None:
            self._give_back_second_claim(job, older)
            return
        execution = self.executor.start(job, self._done, doomed=job.worker in self.doomed)
        self.held[job.id] = execution
        if execution.unknown is not None and job.worker not in self.doomed:
            self._learn_unknown(job.worker, execution.unknown)

    def _give_back_second_claim(self, job: RunningJob, older: Execution) -> None:
        # The older claim was lost (a rescue, say), and its code still runs here: never two at once in one process.
        older.stop("lost")
        ack = Ack(job.id, job._token, "release", "scheduled", delay=1.0)
        second = Execution(job, self._done)
        second.finished = True
        # By itself: a batch is told apart by ids, and the older claim's outcome may be in the next one.
        self._ack_now(Finished(second, ack, reason="it still runs here under a lost claim"))

    def _learn_unknown(self, worker: str, why: str) -> None:
        if worker not in self.unknown:
            self.unknown[worker] = why
            log.warning(
                "queue %s: %s; its jobs are left to nodes that know it, and fail when no live node does",
                self.queue,
                why,
            )
            self._look_now()

    # Jobs that end.

    def _done(self, finished: Finished) -> None:
        if self.ack_mode == "immediate" and finished.ack is not None and self.running:
            self._ack_now(finished)
        else:
            if not self._finished:
                self._woken.set()
            self._finished.append(finished)

    def _ack_now(self, finished: Finished) -> None:
        self._in_task(finished, self._ack_immediately(finished))

    def _ack_apart(self, finished: Finished, why: str) -> None:
        self._apart[finished.execution] = why
        self._in_task(finished, self._ack_until_stored(finished))
        self._check_drained()

    def _in_task(self, finished: Finished, ack: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(ack, name=f"staffa ack {finished.execution.job.id}")
        self._immediate.add(task)
        task.add_done_callback(self._immediate.discard)

    async def _ack_immediately(self, finished: Finished) -> None:
        try:
            lost = await self._one_by_one([finished])
        except DatabaseError as error:
            self._ack_apart(finished, str(error))
        else:
            self._stored([finished], lost)
            self.wake()

    async def _ack_until_stored(self, finished: Finished) -> None:
        """Store an outcome by itself, however often that must be tried: it must not be lost, nor hold up others."""
        for failures in count():
            async with self._places:
                if await self._tried(finished, first=not failures):
                    return
                await self._pause_apart(PAUSE)
            rest = min(backoff.exponential(failures, mult=PAUSE), LONGEST_PAUSE) - PAUSE
            await self._pause_apart(rest, self._halted)

    async def _tried(self, finished: Finished, *, first: bool) -> bool:
        try:
            lost = await self._one_by_one([finished])
        except DatabaseError as error:
            self._apart[finished.execution] = str(error)
            if first:
                who = describe(finished.execution.job)
                log.warning("%s: its outcome is not stored yet, and tried again by itself: %s", who, error)
            return False
        self._stored([finished], lost)
        self.wake()
        return True

    async def _pause_apart(self, delay: float, unless: asyncio.Event | None = None) -> None:
        try:
            async with asyncio.timeout(backoff.jitter(delay)):
                await (unless or asyncio.Event()).wait()
        except TimeoutError:
            pass

    def _stored(self, finished: list[Finished], lost: list[Lost]) -> None:
        gone = {one.id: one.state for one in lost} if lost else {}
        for one in finished:
            execution = one.execution
            job = execution.job
            self._apart.pop(execution, None)
            if self.held.get(job.id) is execution:
                del self.held[job.id]
            if one.ack is None:
                self._report_lost(one, one.reason or "")
            elif job.id in gone:
                self._report_lost(one, gone[job.id] or "deleted")
            else:
                self._report(one, one.ack)
        self._check_drained()

    def _check_drained(self) -> None:
        if not self._draining or self._finished:
            return
        # A claim that is under way when the stop comes may still bring jobs. What is stored apart is waited for last.
        claiming = self.claims_begun != self.claims_ended
        if not claiming and all(one in self._apart for one in self.held.values()):
            self._drained.set()

    def _report(self, one: Finished, ack: Ack) -> None:
        if one.error is not None and ack.kind == "fail" and not telemetry.logged("job.exception"):
            log.warning("%s failed and is %s: %s", describe(one.execution.job), ack.state, brief(one.error))
        if not _listening():
            return
        data: dict[str, Any] = {**self._who(), "job": one.execution.job}
        if ack.kind == "release":
            telemetry.emit("job.released", {**data, "reason": one.reason})
            return
        data |= {"state": ack.state, **_times(one.execution)}
        if one.error is not None:
            telemetry.emit("job.exception", {**data, "error": one.error})
        else:
            telemetry.emit("job.stop", {**data, "result": one.value})

    def _report_lost(self, one: Finished, state: str) -> None:
        if not telemetry.logged("job.lost"):
            who = describe(one.execution.job)
            log.warning("%s: its outcome was not stored, for its claim was gone (%s)", who, state)
        if telemetry.listening("job.lost"):
            duration = _times(one.execution)["duration"]
            telemetry.emit(
                "job.lost", {**self._who(), "job": one.execution.job, "state": state, "duration": duration}
            )

    def _who(self) -> dict[str, Any]:
        return {"instance": self.runtime.name, "node": self.runtime.node}

    # Messages.

    def _on_insert(self, payload: Mapping[str, Any]) -> None:
        if payload.get("queue") == self.queue:
            self._woken.set()

    def _on_signal(self, payload: Mapping[str, Any]) -> None:
        if payload.get("action") == "pkill":
            self.interrupt(payload.get("job_id", 0), "cancelled")

    # The end.

    def hurry(self) -> None:
        """Cut the grace period short."""
        self._hurry.set()

    async def halt(self, task: "asyncio.Task[None]") -> None:
        """Claim no more; let jobs finish within the grace period; put the rest back."""
        started = clock.monotonic()
        self._task = task  # it still runs: acks go on being stored
        self._draining = True
        self.wake()
        self._check_drained()
        await self._wait_drained(self.grace_period, self._hurry)
        orphaned = [id for id, one in self.held.items() if not one.finished]
        for execution in tuple(self.held.values()):
            execution.stop("shutdown")
        await self._wait_drained(3.5 if orphaned else 1.0, None)
        await self._part_with_the_rest()
        await super().halt(task)
        await self._flush()
        self._task = None
        self._report_shutdown(clock.monotonic() - started, orphaned)

    async def _wait_drained(self, timeout: float, unless: asyncio.Event | None) -> None:
        waits = [
            asyncio.ensure_future(event.wait()) for event in (self._drained, unless) if event is not None
        ]
        try:
            await asyncio.wait(waits, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _part_with_the_rest(self) -> None:
        """What cannot be stopped: given back when the process ends right after, else waited for as long as it lasts."""
        left = [execution for execution in self.held.values() if not execution.finished]
        if left and self.exits:
            self.left_running = True
            for execution in left:
                execution.finish(
                    Finished(
                        execution,
                        Ack(execution.job.id, execution.job._token, "release", "available"),
                        reason="shutdown",
                    )
                )
        elif left:
            for execution in left:
                log.warning("%s cannot be interrupted; the queue waits for its end", describe(execution.job))
            await self._drained.wait()

    async def _flush(self) -> None:
        """Store what came in last, and what waits to be stored apart."""
        finished, self._finished = self._finished, []
        for one in finished:
            self._ack_apart(one, "")
        try:
            async with asyncio.timeout(STORE_WITHIN):
                while self._immediate:  # one that fails goes on as another
                    await asyncio.wait(self._immediate)
        except TimeoutError:
            await self._give_up()

    async def _give_up(self) -> None:
        left = set(self._immediate)
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=STORE_WITHIN)
        self._unstored = [execution.job.id for execution in self._apart]
        log.error(
            "queue %s: the outcomes of %s could not be stored: %s",
            self.queue,
            self._unstored,
            next(filter(None, self._apart.values()), "the database did not answer in time"),
        )
        self._apart.clear()

    def _report_shutdown(self, elapsed: float, orphaned: list[int]) -> None:
        back = [id for id in orphaned if id not in self._unstored]
        if back and not telemetry.logged("queue.shutdown"):
            log.warning("queue %s: jobs %s were put back, the grace period was too short", self.queue, back)
        data = {**self._who(), "queue": self.queue, "elapsed": elapsed, "orphaned": orphaned}
        telemetry.emit("queue.shutdown", data)


_NO_META: dict[str, Any] = {}


def _listening() -> bool:
    return (
        telemetry.listening("job.stop")
        or telemetry.listening("job.exception")
        or telemetry.listening("job.released")
    )


def _times(execution: Execution) -> dict[str, float]:
    duration = execution.ended_at - execution.started_at if execution.started_at else 0.0
    return {"duration": duration, "queue_time": _queue_time(execution.job)}


def _queue_time(job: RunningJob) -> float:
    try:
        if job.attempted_at is not None and job.scheduled_at is not None:
            return max((job.attempted_at - job.scheduled_at).total_seconds(), 0.0)
    except TypeError:  # a foreign program's idea of a moment
        log.debug("%s has moments that do not compare", describe(job))
    return 0.0


def _storable_ack(job: RunningJob, ack: Ack, error: Exception) -> Ack:
    text = f"the outcome {ack.kind!r} could not be stored: {type(error).__name__}"
    entry = {"at": clock.now().isoformat().replace("+00:00", "Z"), "attempt": job.attempt, "error": text}
    state = "discarded" if job.attempt >= job.max_attempts else "retryable"
    return Ack(
        job.id, job._token, "fail", state, None if state == "discarded" else 60.0, payload.encode(entry)
    )
