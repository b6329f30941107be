"""The record handed to every service: who we are and whom we talk to, with the ways in.

`run` runs steps of the engine, `read` those that only read; `insert` stores jobs and wakes those who wait for
them. The instance, the plugins and the tests all use these.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeVar

from staffa import clock, telemetry
from staffa.connections import Connections
from staffa.engine import Engine, Notice
from staffa.errors import DatabaseError
from staffa.jobs import Job
from staffa.notifier import Notifier
from staffa.peer import Peer
from staffa.steps import Steps

__all__ = ["Pulse", "Runtime"]

log = logging.getLogger("staffa.runtime")

T = TypeVar("T")

# Seconds by which the two clocks may drift apart between two beats.
JUMP = 2.0


class Pulse:
    """What this node knows of its own heartbeat.

    Whoever wants to call another node dead must have a steady pulse itself: what keeps us from writing (a
    transaction that holds SQLite's only lock, a stopped process) keeps others from it as well. And when the wall
    clock jumps, every heartbeat looks stale at once.
    """

    def __init__(self) -> None:
        self._steady_since: float | None = None
        self._last: float | None = None
        self._last_wall = 0.0
        self.beaten_at: str | None = None
        """When the last beat was, by the database's clock."""

    def beats(self, wall: float, longest_gap: float) -> None:
        """A beat has been stored, at this moment of the database's clock (seconds)."""
        now = clock.monotonic()
        if self._last is None or now - self._last > longest_gap or self._jumped(wall):
            self._steady_since = now
        self._last, self._last_wall = now, wall
        self.beaten_at = clock.to_text(datetime.fromtimestamp(wall, UTC))

    def stops(self) -> None:
        """A beat failed, or there are none any more; the next one begins anew."""
        self._steady_since = self._last = None

    def beat_within(self, seconds: float) -> bool:
        """Whether the last beat is no older than that."""
        return self._last is not None and clock.monotonic() - self._last <= seconds

    def steady_for(self, seconds: float, wall: float | None, longest_gap: float) -> bool:
        """Whether beats have come without a gap for so long, up to now, by both clocks, as far as `wall` is known."""
        if self._steady_since is None or not self.beat_within(longest_gap):
            return False
        if wall is not None and self._jumped(wall):
            return False
        return clock.monotonic() - self._steady_since >= seconds

    def _jumped(self, wall: float) -> bool:
        passed = clock.monotonic() - (self._last or 0.0)
        return abs(wall - self._last_wall - passed) > JUMP


@dataclass(frozen=True, slots=True)
class Runtime:
    """What every service needs."""

    name: str
    node: str
    engine: Engine
    connections: Connections
    notifier: Notifier
    peer: Peer
    pulse: Pulse = field(default_factory=Pulse)

    def wall(self) -> float | None:
        """The present moment of the database's clock in seconds; None when only the database itself knows."""
        said = self.engine.now()
        return clock.from_text(said).timestamp() if said else None

    async def run(self, steps: Steps[T]) -> T:
        """Run steps of the engine on our own connections."""
        return await self._spanned(steps, self.connections.run)

    async def read(self, steps: Steps[T]) -> T:
        """Run steps of the engine that only read; they wait for nobody who writes."""
        return await self._spanned(steps, self.connections.read)

    async def insert(self, jobs: Sequence[Job], conn: object = None) -> list[Job]:
        """Store jobs, then wake the queues that have something to claim.

        On a user's connection nobody is woken here: the jobs may never be committed. There the database delivers the
        message with the commit, or the commit itself is noticed.
        """
        if not jobs:
            return []
        queues = {job.queue for job in jobs if job.state == "available"}
        try:
            if conn is not None:
                steps = self.engine.insert_jobs(jobs, self.notifier.notice(queues))
                return await self._spanned(steps, self.connections.adopt(conn).run)
            with self.notifier.waking(queues) as notice:
                return await self._insert(jobs, notice)
        except BaseException:
            for job in jobs:
                job.id = None  # nothing was stored: they are as new as before
            raise

    async def _insert(self, jobs: Sequence[Job], notice: Notice | None) -> list[Job]:
        try:
            return await self.run(self.engine.insert_jobs(jobs, notice))
        except DatabaseError as error:
            if notice is None or not error.notice_refused:
                raise
            log.error("jobs are stored, but other nodes are not told of them: %s", error)
            return await self.run(self.engine.insert_jobs(jobs))

    async def _spanned(self, steps: Steps[T], run: Callable[[Steps[T]], Awaitable[T]]) -> T:
        if not telemetry.listening_to_span("engine"):
            return await run(steps)
        verb = getattr(steps, "__name__", "steps")
        with telemetry.span("engine", {"instance": self.name, "verb": verb}) as extra:
            result = extra["result"] = await run(steps)
        return result
