"""The heartbeat says that this node lives, and keeps its producers true to the database.

It runs in a thread with an event loop and a connection of its own, so that a job that blocks the main loop
stops neither. Each beat refreshes our producers' rows, then compares: rows that execute under a producer that
does not hold them (the answer to a claim was lost) go back; jobs that we run whose rows are not ours any more
(cancelled, rescued, deleted) are stopped. Between beats it pings the main loop, and names the job and the line
that keep it from answering.
"""

import asyncio
import logging
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any, cast

from staffa import backoff, clock, telemetry
from staffa.connections import Dedicated
from staffa.engine import Ack, Beaten, Executing, Lost, ProducerRow
from staffa.errors import DatabaseError, DatabaseUnavailable
from staffa.executor import StopReason, describe
from staffa.jobs import RunningJob
from staffa.producer import Producer
from staffa.runtime import Runtime
from staffa.service import Service

__all__ = ["BEAT_EVERY", "STALE_AFTER", "Heartbeat"]

log = logging.getLogger("staffa.heartbeat")

# Seconds. A node may miss four beats before its jobs are taken from it.
BEAT_EVERY, STALE_AFTER = 5.0, 25.0

# A node judges others only while its own beats come closer together than this.
LONGEST_GAP = 2 * BEAT_EVERY

# After a beat that failed. Rescuers wait BEAT_EVERY after such a time, so every node must be back sooner.
LONGEST_PAUSE = 1.0

# Seconds that a stop leaves to a beat that is under way, and to the deletion of our rows.
END_WITHIN = 5.0

# Seconds that a beat spends on giving lost claims back: the next one must not come later than LONGEST_GAP.
GIVE_BACK_WITHIN = 3.0

PING_EVERY, BLOCKED_AFTER = 0.5, 1.0


class Heartbeat(Service):
    """One per instance; `producers` gives its producers at any time."""

    def __init__(
        self, runtime: Runtime, producers: Callable[[], Sequence[Producer]], interval: float = BEAT_EVERY
    ) -> None:
        super().__init__("heartbeat")
        self.runtime = runtime
        self.interval = interval
        self._producers = producers
        self._thread: threading.Thread | None = None
        self._connection: Dedicated | None = None
        self._inner: asyncio.AbstractEventLoop | None = None
        self._main: asyncio.AbstractEventLoop | None = None
        self._main_thread = 0
        self._woken = asyncio.Event()
        self._wanted = False
        # By producer: rows that execute under it, which it did not hold, and how many claims had begun by then.
        self._unheld: dict[str, dict[tuple[int, str], int]] = {}
        # By producer: rows that could not be given back, of which the log has been told.
        self._told: dict[str, set[tuple[int, str]]] = {}
        self._stopping = threading.Event()
        self._ponged = 0.0

    @property
    def running(self) -> bool:
        """Whether its thread beats."""
        return self._thread is not None

    async def start(self) -> None:
        """Store the first beat, so that no job is ever claimed under a producer without a row; then beat on."""
        if self._thread is not None:
            return
        self._main = asyncio.get_running_loop()
        self._main_thread = threading.get_ident()
        self._stopping.clear()
        await self._beat(self.runtime.connections)
        self._thread = threading.Thread(
            target=self._serve, name=f"staffa heartbeat {self.runtime.name}", daemon=True
        )
        self._thread.start()

    async def stop(self) -> None:
        """Beat no more, and delete our rows, except those under which something still executes."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._stopping.set()
        self.wake()
        await asyncio.get_running_loop().run_in_executor(None, thread.join, END_WITHIN)
        self.runtime.pulse.stops()
        retire = self.runtime.engine.retire_producers([one.beat() for one in self._producers()])
        try:
            async with asyncio.timeout(END_WITHIN):
                await self.runtime.run(retire)
        except (DatabaseError, TimeoutError) as error:
            log.warning(
                "this node's rows stay behind, until another node clears them away: %s",
                str(error) or "the database did not answer in time",
            )

    def wake(self) -> None:
        """Beat and compare now; from any thread."""
        self._wanted = True  # for a thread that does not listen yet
        inner = self._inner
        if inner is not None:
            try:
                inner.call_soon_threadsafe(self._woken.set)
            except RuntimeError:
                log.debug("the heartbeat was woken after its end")

    # In the thread.

    def _serve(self) -> None:
        while not self._stopping.is_set():
            try:
                asyncio.run(self._serve_async())
            except Exception:
                self.runtime.pulse.stops()
                log.critical(
                    "the heartbeat stumbled and begins anew; until it beats, nothing is claimed",
                    exc_info=True,
                )
                self._stopping.wait(LONGEST_PAUSE)

    async def _serve_async(self) -> None:
        self._woken = asyncio.Event()
        self._inner = asyncio.get_running_loop()
        if self._wanted:
            self._woken.set()
        watch = asyncio.create_task(self._watch_main_loop(), name="staffa ping")
        try:
            await self._beat_on()
        finally:
            self._inner = None
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)

    async def _beat_on(self) -> None:
        try:
            await self._beat_until_stopped()
        finally:
            await self._drop_connection()

    async def _beat_until_stopped(self) -> None:
        pause = 0.0
        while not self._stopping.is_set():
            await self._wait(pause or backoff.jitter(self.interval))
            if self._stopping.is_set():
                break
            if self._main is not None and self._main.is_closed():
                log.error("the event loop was closed without a stop; this node's jobs will be rescued")
                self._stopping.set()
                break
            try:
                self._connection = self._connection or await self.runtime.connections.dedicated()
                await self._beat(self._connection)
                pause = 0.0
            except Exception as error:
                pause = min((pause or 0.25) * 2, LONGEST_PAUSE)
                self.runtime.pulse.stops()
                log.warning("a heartbeat failed, the next follows in %.1f s: %s", pause, error)
                telemetry.emit("loop.failed", {"service": self.name, "error": error, "delay": pause})
                await self._drop_connection()

    async def _drop_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def _wait(self, delay: float) -> None:
        try:
            async with asyncio.timeout(delay):
                await self._woken.wait()
        except TimeoutError:
            pass
        self._woken.clear()
        self._wanted = False

    # One beat.

    async def _beat(self, connection: Any) -> None:
        producers = self._producers()
        if not producers:
            return
        before = {one.uuid: _Snapshot(one) for one in producers}
        beats = [one.beat() for one in producers]
        beaten: Beaten = await connection.run(self.runtime.engine.heartbeat(beats))
        resumed = not self.runtime.pulse.beat_within(LONGEST_GAP)
        self.runtime.pulse.beats(clock.from_text(beaten.now).timestamp(), LONGEST_GAP)
        if resumed:
            for producer in producers:  # whoever was woken meanwhile was not allowed to claim
                producer.wake_from_anywhere()
        try:
            await self._compare(connection, producers, before, beaten.executing)
        except Exception as error:
            # The node lives all the same: that much has been stored.
            log.warning(
                "a heartbeat was stored, but what runs here could not be compared with the database: %s",
                error,
                exc_info=not isinstance(error, DatabaseError),
            )
            await self._drop_connection()

    async def _compare(
        self,
        connection: Any,
        producers: Sequence[Producer],
        before: Mapping[str, "_Snapshot"],
        executing: Sequence[Executing],
    ) -> None:
        rows = {one.uuid: [row for row in executing if row.uuid == one.uuid] for one in producers}
        for producer in producers:
            await self._let_go(connection, producer, before[producer.uuid], rows[producer.uuid])
        if any(one.unknown for one in producers):
            await self._judge_unknown(connection, producers)
        for producer in producers:  # last: the rest does not wait for rows that somebody else holds
            await self._give_back(connection, producer, before[producer.uuid], rows[producer.uuid])

    async def _give_back(
        self, connection: Any, producer: Producer, before: "_Snapshot", rows: list[Executing]
    ) -> None:
        after = _Snapshot(producer)
        held = before.held | after.held
        unheld = {(row.id, row.token): row for row in rows if row.id not in held}
        # What a claim is just bringing is not held yet: only when all claims have ended that had begun when a row was
        # first seen, nobody will hold it any more. A busy queue never rests, so that may take another look.
        known = self._unheld.get(producer.uuid, {})
        since = self._unheld[producer.uuid] = {key: known.get(key, after.begun) for key in unheld}
        orphans = [row for key, row in unheld.items() if before.ended >= since[key]]
        back = await self._release(connection, producer, orphans) if orphans else []
        if back:
            log.warning(
                "queue %s: jobs %s were claimed, but the answer never came; they are available again",
                producer.queue,
                back,
            )
            producer.wake_from_anywhere()

    async def _release(self, connection: Any, producer: Producer, orphans: Sequence[Executing]) -> list[int]:
        """Give rows back, together where the database takes them together; returns the ids of those it took."""
        try:
            async with asyncio.timeout(GIVE_BACK_WITHIN):
                return await self._release_now(connection, producer, orphans)
        except TimeoutError:
            raise DatabaseUnavailable(
                f"{len(orphans)} lost claims could not be given back within {GIVE_BACK_WITHIN:g} s"
            ) from None

    async def _release_now(
        self, connection: Any, producer: Producer, orphans: Sequence[Executing]
    ) -> list[int]:
        acks = [Ack(row.id, row.token, "release", "available") for row in orphans]
        stuck: dict[tuple[int, str], str] = {}
        try:
            lost = await self._ack(connection, producer, acks)
        except DatabaseUnavailable:
            raise
        except DatabaseError:
            lost = list[Lost]()
            for ack in acks:
                try:
                    lost += await self._ack(connection, producer, [ack])
                except DatabaseUnavailable:
                    raise
                except DatabaseError as error:
                    stuck[ack.id, ack.token] = str(error)
        gone = {one.id: one.state for one in lost}
        for ack in acks:
            if gone.get(ack.id) == "executing":
                stuck[ack.id, ack.token] = "its claim is not the one that was seen"
        self._tell_stuck(producer, stuck)
        return [ack.id for ack in acks if ack.id not in gone and (ack.id, ack.token) not in stuck]

    async def _ack(self, connection: Any, producer: Producer, acks: Sequence[Ack]) -> list[Lost]:
        lost: list[Lost] = await connection.run(self.runtime.engine.ack_jobs(producer.beat(), acks))
        return lost

    def _tell_stuck(self, producer: Producer, stuck: Mapping[tuple[int, str], str]) -> None:
        """Say what cannot be given back, once a row and not with every beat."""
        told = self._told.get(producer.uuid, set())
        for key in stuck.keys() - told:
            log.warning(
                "queue %s: job %d executes under this node, which does not run it, and could not be given back: %s",
                producer.queue,
                key[0],
                stuck[key],
            )
        self._told[producer.uuid] = set(stuck)

    async def _let_go(
        self, connection: Any, producer: Producer, before: "_Snapshot", rows: list[Executing]
    ) -> None:
        ours = {(row.id, row.token) for row in rows}
        missing = [job for job in before.running if (job.id, job._token) not in ours]
        if not missing:
            return
        found = await connection.run(self.runtime.engine.held_states([job.id for job in missing]))
        for job in missing:
            state, token, uuid = found.get(job.id, ("deleted", "", ""))
            mine = token == job._token and uuid == producer.uuid
            if not (mine and state in ("executing", "completed")) and self._main is not None:
                reason: StopReason = "cancelled" if mine and state == "cancelled" else "lost"
                self._main.call_soon_threadsafe(producer.interrupt, job.id, reason, job._token)

    async def _judge_unknown(self, connection: Any, producers: Sequence[Producer]) -> None:
        """A worker that every live producer of a queue names as unknown is doomed: its jobs are claimed, and fail."""
        rows: list[ProducerRow] = await connection.run(self.runtime.engine.producers(STALE_AFTER))
        for producer in producers:
            if producer.unknown:
                alive = [row for row in rows if row.queue == producer.queue and row.alive]
                doomed = frozenset(
                    name for name in producer.unknown if all(name in _named_unknown(row) for row in alive)
                )
                if doomed != producer.doomed:
                    producer.doomed = doomed
                    producer.wake_from_anywhere()

    # The detector.

    async def _watch_main_loop(self) -> None:
        self._ponged = clock.monotonic()
        blocked_since = 0.0
        while True:
            asked = clock.monotonic()
            if not self._ping():
                return
            await asyncio.sleep(PING_EVERY)
            silence = clock.monotonic() - max(self._ponged, asked - PING_EVERY)
            if self._ponged >= asked:
                blocked_since = 0.0
            elif clock.monotonic() - self._ponged >= BLOCKED_AFTER and not blocked_since:
                blocked_since = self._ponged
                self._report_blocked(silence)

    def _ping(self) -> bool:
        try:
            if self._main is not None:
                self._main.call_soon_threadsafe(self._pong)
        except RuntimeError:
            return False
        return True

    def _pong(self) -> None:
        self._ponged = clock.monotonic()

    def _report_blocked(self, silence: float) -> None:
        job = self._job_on_main_loop()
        line = _where(sys._current_frames().get(self._main_thread))
        who = describe(job) if job is not None else "code outside of any job"
        log.warning("the event loop has been blocked for %.1f s by %s, in %s", silence, who, line)
        data = {
            "instance": self.runtime.name,
            "node": self.runtime.node,
            "job": job,
            "line": line,
            "elapsed": silence,
        }
        telemetry.emit("loop.blocked", data)

    def _job_on_main_loop(self) -> RunningJob | None:
        task = asyncio.current_task(self._main)
        for producer in self._producers():
            for execution in tuple(producer.held.values()):
                if execution.task is not None and execution.task is task:
                    return execution.job
        return None


def _named_unknown(row: ProducerRow) -> Sequence[object]:
    named: object = row.meta.get("unknown")
    return cast("list[object]", named) if isinstance(named, list) else ()


class _Snapshot:
    """Which claims a producer had begun and ended, and what it held, at one moment; read from the other thread."""

    __slots__ = ("begun", "ended", "held", "running")

    def __init__(self, producer: Producer) -> None:
        self.begun = producer.claims_begun
        self.ended = producer.claims_ended  # before what is held: a claim that has ended has brought its jobs
        held = tuple(producer.held.values())
        self.held = {execution.job.id for execution in held}
        self.running = [execution.job for execution in held if not execution.finished]


def _where(frame: FrameType | None) -> str:
    """The job's own line: the innermost frame outside of the standard library and of Staffa, as far as there is one."""
    innermost = frame
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        top = module.partition(".")[0]
        if top not in sys.stdlib_module_names and top != "staffa" and module:
            return _line(frame)
        if module == "__main__":
            return _line(frame)
        frame = frame.f_back
    return _line(innermost) if innermost is not None else "an unknown place"


def _line(frame: FrameType) -> str:
    code = frame.f_code
    return f"{code.co_qualname} ({code.co_filename}:{frame.f_lineno})"
