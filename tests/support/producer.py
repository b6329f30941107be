"""A producer's side of the verbs, by hand: it claims and acks under one uuid, and runs nothing."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar
from uuid import uuid4

from staffa import payload
from staffa.engine import Ack, Beat, Beaten, Claim, Engine, Executing, Lost
from staffa.jobs import RunningJob
from staffa.steps import Steps

__all__ = [
    "Claimer",
    "cancelled",
    "completed",
    "discarded",
    "entry",
    "failed",
    "out_of_attempts",
    "released",
    "snoozed",
]

T = TypeVar("T")


class Claimer:
    """One producer; `run` is how its steps get to the database."""

    def __init__(
        self,
        engine: Engine,
        run: Callable[[Steps[Any]], Awaitable[Any]],
        *,
        queue: str = "default",
        node: str = "node-1",
        name: str = "staffa",
    ) -> None:
        self.engine = engine
        self.beat = Beat(str(uuid4()), name, node, queue, {"limit": 10})
        self.run = run
        self._beaten = False

    @property
    def uuid(self) -> str:
        """What tells it from every other producer."""
        return self.beat.uuid

    async def round_trip(
        self, acks: Sequence[Ack] = (), demand: int = 10, unknown: Sequence[str] = ()
    ) -> Claim:
        """Ack and claim, as one; like a node, it beats before it claims for the first time."""
        if not self._beaten:
            await self.heartbeat()
        claim: Claim = await self.run(self.engine.ack_and_claim(self.beat, acks, demand, unknown))
        return claim

    async def claim(self, demand: int = 10, unknown: Sequence[str] = ()) -> list[RunningJob]:
        """The next jobs."""
        return (await self.round_trip(demand=demand, unknown=unknown)).jobs

    async def claim_one(self) -> RunningJob:
        """The one job that there is to claim."""
        [job] = await self.claim()
        return job

    async def ack(self, *acks: Ack) -> list[Lost]:
        """Store outcomes; returns those that were refused."""
        lost: list[Lost] = await self.run(self.engine.ack_jobs(self.beat, acks))
        return lost

    async def heartbeat(self) -> list[Executing]:
        """One beat; returns what is executing under this producer."""
        self._beaten = True
        beaten: Beaten = await self.run(self.engine.heartbeat([self.beat]))
        return beaten.executing

    async def retire(self) -> None:
        """Delete its row, unless something executes under it."""
        await self.run(self.engine.retire_producers([self.beat]))


# The acks of a claimed job.


def completed(job: RunningJob) -> Ack:
    return Ack(job.id, job._token, "complete")


def failed(job: RunningJob, delay: float = 15.0, error: str = "RuntimeError: no") -> Ack:
    return Ack(job.id, job._token, "fail", "retryable", delay, entry(job.attempt, error))


def out_of_attempts(job: RunningJob, error: str = "RuntimeError: never") -> Ack:
    return Ack(job.id, job._token, "fail", "discarded", error=entry(job.attempt, error))


def discarded(job: RunningJob, error: str = "Discard: useless") -> Ack:
    return Ack(job.id, job._token, "discard", "discarded", error=entry(job.attempt, error))


def cancelled(job: RunningJob, error: str = "Cancel: unwanted") -> Ack:
    return Ack(job.id, job._token, "cancel", "cancelled", error=entry(job.attempt, error))


def snoozed(job: RunningJob, delay: float = 60.0) -> Ack:
    return Ack(job.id, job._token, "snooze", "scheduled", delay)


def released(job: RunningJob) -> Ack:
    return Ack(job.id, job._token, "release", "available")


def entry(attempt: int, error: str) -> str:
    """One entry of `errors`, as the executor writes it."""
    return payload.encode({"at": "2026-11-21T09:30:00.123456Z", "attempt": attempt, "error": error})
