"""Every verb, over the portable statements.

An engine that needs another algorithm for a verb (a claim without RETURNING, a bulk insert by COPY)
inherits from this one and overrides just that verb.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, cast

from staffa import clock, payload
from staffa.engine import (
    Ack,
    Beat,
    Beaten,
    Claim,
    Executing,
    JobFilter,
    Lost,
    Notice,
    ProducerRow,
    Rescued,
    Staged,
)
from staffa.engines import statements as sql
from staffa.engines.dialect import Dialect
from staffa.jobs import Job, RunningJob
from staffa.migrations import Migrations
from staffa.steps import Rows, Statement, Steps, atomic

__all__ = ["BasicEngine", "beats_text", "claimed", "what_executes"]

PRUNED = {
    "completed": sql.PRUNE_COMPLETED,
    "discarded": sql.PRUNE_DISCARDED,
    "cancelled": sql.PRUNE_CANCELLED,
}


class BasicEngine:
    """The verbs that the databases share; see `staffa.engine.Engine` for what each does."""

    name = "basic"
    serves_itself = False
    has_prefixes = True
    skips_locked_rows = True
    acks_before_it_claims = True
    returns_inserted_rows = True
    notifies = False

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect
        self.migrations = Migrations(dialect)
        self.now: Callable[[], str | None] = _no_override

    def insert_jobs(self, jobs: Sequence[Job], notice: Notice | None = None) -> Steps[list[Job]]:
        """Store new jobs, all or none, and give them their ids and moments."""
        if len(jobs) == 1:
            return (yield from self._insert_job(jobs[0]))
        return (yield from atomic(lambda: self._insert_jobs(jobs)))

    def notify(self, notice: Notice) -> Steps[None]:
        """Deliver messages."""
        raise NotImplementedError(f"{self.name} delivers no messages")

    def ack_and_claim(
        self, beat: Beat, acks: Sequence[Ack], demand: int, unknown: Sequence[str] = ()
    ) -> Steps[Claim]:
        """Store outcomes and claim the next jobs, as one."""
        return (yield from atomic(lambda: self._ack_and_claim(beat, acks, demand, unknown)))

    def ack_jobs(self, beat: Beat, acks: Sequence[Ack]) -> Steps[list[Lost]]:
        """Store outcomes, each only if its claim still holds."""
        who = {"node": beat.node, "uuid": beat.uuid, "now": self.now()}
        tokens = {str(ack.id): ack.token for ack in acks}
        # A stale claim of a job may be acked beside its present one: then the tokens by id do not hold both.
        if len(tokens) == len(acks) and all(ack.kind == "complete" for ack in acks):
            rows = yield self._sql(sql.COMPLETE_JOBS, acks=payload.encode(tokens), **who)
        else:
            rows = yield self._sql(sql.ACK_JOBS, acks=payload.encode(acks), **who)
        if len(rows) == len(acks):
            return []
        stored = {row[0] for row in rows}
        return (yield from self._lost(beat, [ack for ack in acks if ack.id not in stored]))

    def stage_jobs(self, limit: int, queues: Sequence[str]) -> Steps[Staged]:
        """Make due jobs available, the longest due first."""
        rows = yield self._sql(sql.PENDING, queues=payload.encode(list(queues)), now=self.now())
        available = {row[0] for row in rows}
        staged: Rows = []
        if None in available:
            staged = yield self._sql(sql.STAGE_JOBS, limit=limit, now=self.now())
        into = {row[0] for row in staged}
        available |= into & set(queues)
        return Staged(len(staged), sorted(into), sorted(available - {None}))

    def heartbeat(self, beats: Sequence[Beat]) -> Steps[Beaten]:
        """Refresh our producers' rows; returns when that was, and what is executing under them."""
        said, now = beats_text(beats), self.now()
        yield self._sql(sql.HEARTBEAT, beats=said, now=now)
        return what_executes((yield self._sql(sql.EXECUTING, beats=said, now=now)))

    def producers(self, stale_after: float) -> Steps[list[ProducerRow]]:
        """Every producer there is, on all nodes."""
        rows = yield self._sql(sql.PRODUCERS, stale_after=stale_after, now=self.now())
        return [
            ProducerRow(uuid, name, node, queue, _object(meta), started_at, updated_at, bool(alive))
            for uuid, name, node, queue, meta, started_at, updated_at, alive in rows
        ]

    def retire_producers(self, beats: Sequence[Beat]) -> Steps[None]:
        """Delete our producers' rows, except those under which something still executes."""
        for beat in beats:
            retire = partial(self._retire, beat)
            yield from atomic(retire)

    def held_states(self, ids: Sequence[int]) -> Steps[dict[int, tuple[str, str, str]]]:
        """State, token and producer's uuid of the rows with these ids."""
        rows = yield self._sql(sql.HELD_STATES, ids=payload.encode(list(ids)))
        return {row[0]: (row[1], row[2] or "", _uuid(row[3])) for row in rows}

    def rescue_jobs(
        self, stale_after: float, limit: int, *, beaten_at: str | None = None, longest_gap: float = 0.0
    ) -> Steps[list[Rescued]]:
        """Take the jobs of dead producers back."""
        dead = yield self._sql(
            sql.STALE_PRODUCERS,
            stale_after=stale_after,
            beaten_at=beaten_at,
            longest_gap=longest_gap,
            now=self.now(),
        )
        rescued: list[Rescued] = []
        for uuid, node in dead:
            rescue = partial(self._rescue, uuid, node, stale_after, limit)
            rescued += yield from atomic(rescue)
        return rescued

    def prune_jobs(self, max_age: Mapping[str, float], limit: int) -> Steps[dict[str, int]]:
        """Delete finished jobs that are old enough."""
        ages = {state: max_age.get(state) for state in PRUNED}
        old = yield self._sql(sql.PRUNABLE, now=self.now(), **ages)
        pruned: dict[str, int] = {}
        for (state,) in old:
            rows = yield self._sql(PRUNED[state], max_age=ages[state], limit=limit, now=self.now())
            pruned[state] = len(rows)
        return pruned

    def get_job(self, id: int) -> Steps[Job | None]:
        """One job."""
        return _one((yield self._sql(sql.GET_JOB, id=id)))

    def list_jobs(self, where: JobFilter, limit: int) -> Steps[list[Job]]:
        """Jobs, the newest first."""
        lists = {
            name: None if values is None else payload.encode(list(values))
            for name, values in where._asdict().items()
        }
        rows = yield self._sql(sql.LIST_JOBS, limit=limit, **lists)
        return [Job.loaded(row) for row in rows]

    def count_jobs(self) -> Steps[dict[tuple[str, str], int]]:
        """How many jobs there are by (queue, state)."""
        rows = yield self._sql(sql.COUNT_JOBS)
        return {(queue, state): count for queue, state, count in rows}

    def cancel_job(self, id: int) -> Steps[Job | None]:
        """Cancel an unfinished job."""
        return _one((yield self._sql(sql.CANCEL_JOB, id=id, now=self.now())))

    def retry_job(self, id: int) -> Steps[Job | None]:
        """Make a job available again, with at least one attempt left."""
        return _one((yield self._sql(sql.RETRY_JOB, id=id, now=self.now())))

    # Steps.

    def _insert_jobs(self, jobs: Sequence[Job]) -> Steps[list[Job]]:
        stored: list[Job] = []
        for job in jobs:
            stored += yield from self._insert_job(job)
        return stored

    def _insert_job(self, job: Job) -> Steps[list[Job]]:
        rows = yield self._sql(sql.INSERT_JOB, **self._one(job))
        job.id, job._inserted_at, job._scheduled_at = rows[0]
        return [job]

    def _one(self, job: Job) -> dict[str, Any]:
        return {
            "state": job.state,
            "queue": job.queue,
            "worker": job.worker,
            "args": job._args_text,
            "meta": job._meta_text,
            "tags": job._tags_text,
            "max_attempts": job.max_attempts,
            "priority": job.priority,
            "schedule_in": job.schedule_in,
            "scheduled_at": None if job.scheduled_at is None else clock.to_text(job.scheduled_at),
            "now": self.now(),
        }

    def _ack_and_claim(
        self, beat: Beat, acks: Sequence[Ack], demand: int, unknown: Sequence[str]
    ) -> Steps[Claim]:
        lost = (yield from self.ack_jobs(beat, acks)) if acks else []
        if demand <= 0:
            return Claim([], lost, full=False)
        who = {"node": beat.node, "uuid": beat.uuid, "queue": beat.queue, "demand": demand, "now": self.now()}
        if unknown:
            rows = yield self._sql(sql.CLAIM_KNOWN_JOBS, unknown=payload.encode(list(unknown)), **who)
        else:
            rows = yield self._sql(sql.CLAIM_JOBS, **who)
        return Claim(claimed(rows, beat), lost, full=len(rows) >= demand)

    def _lost(self, beat: Beat, refused: Sequence[Ack]) -> Steps[list[Lost]]:
        # An ack whose first answer was lost is sent again: a row that already is what it asks for, under the
        # same token, is success.
        found = yield from self.held_states([ack.id for ack in refused])
        lost: list[Lost] = []
        for ack in refused:
            state, token, uuid = found.get(ack.id, (None, "", ""))
            if not (state == ack.state and token == ack.token and uuid == beat.uuid):
                lost.append(Lost(ack.id, state))
        return lost

    def _retire(self, beat: Beat) -> Steps[None]:
        locked = yield self._sql(sql.LOCK_PRODUCER, uuid=beat.uuid)
        if locked:
            yield self._sql(sql.RETIRE_PRODUCER, node=beat.node, uuid=beat.uuid)

    def _rescue(self, uuid: str, node: str, stale_after: float, limit: int) -> Steps[list[Rescued]]:
        who = {"uuid": uuid, "node": node, "stale_after": stale_after, "now": self.now()}
        # In a statement of its own: the next one must see what was claimed until now.
        locked = yield self._sql(sql.LOCK_STALE_PRODUCER, uuid=uuid, stale_after=stale_after, now=who["now"])
        if not locked:
            return []
        rows = yield self._sql(sql.RESCUE_JOBS, limit=limit, **who)
        yield self._sql(sql.BURY_PRODUCER, **who)
        return [Rescued(*row) for row in rows]

    def _sql(self, template: str, **parameters: Any) -> Statement:
        return Statement(self.dialect.render(template), parameters)


def _no_override() -> str | None:
    return None


def _one(rows: Rows) -> Job | None:
    return Job.loaded(rows[0]) if rows else None


def what_executes(rows: Rows) -> Beaten:
    """What `EXECUTING` brought."""
    [now] = [row[1] for row in rows if row[0] is None]
    return Beaten(now, [Executing(*row) for row in rows if row[0] is not None])


def claimed(rows: Rows, beat: Beat) -> list[RunningJob]:
    """Jobs from the rows of a claim, in the order in which they shall start."""
    # RETURNING has no order: priority, then schedule, then id.
    with suppress(TypeError):  # odd values of a foreign program's rows do not compare; they run all the same
        rows.sort(key=lambda row: (row[8], row[10], row[0]))
    by = [beat.node, beat.uuid]
    return [RunningJob.claimed(row[:12], beat.queue, by) for row in rows if row[12] == "executing"]


def beats_text(beats: Sequence[Beat]) -> str:
    """Producers' rows, as a JSON list."""
    return payload.encode([{**beat._asdict(), "meta": payload.encode(beat.meta)} for beat in beats])


def _object(text: str | None) -> dict[str, Any]:
    # One odd row of a foreign program must not hide the sound ones.
    try:
        value: object = payload.decode(text or "{}")
    except (ValueError, TypeError, RecursionError):
        return {}
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _uuid(attempted_by: str | None) -> str:
    try:
        by = payload.decode(attempted_by or "[]")
    except ValueError:  # a foreign program may have written anything; it holds no claim of ours
        return ""
    match by:
        case [_, str() as uuid, *_]:
            return uuid
        case _:
            return ""
