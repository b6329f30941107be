"""The engine for PostgreSQL: many nodes, one table.

What differs from the portable verbs: acks and the claim are one statement, so that a producer's cycle is one round
trip; jobs come in by one JSON parameter, with the message that wakes their queues in the same statement; a heartbeat
is one statement, too.
"""

import re
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import msgspec

from staffa import clock, payload
from staffa.engine import Ack, Beat, Beaten, Claim, Lost, Notice
from staffa.engines import statements as sql
from staffa.engines.basic import BasicEngine, beats_text, claimed, what_executes
from staffa.engines.dialect import Dialect
from staffa.errors import InvalidOption
from staffa.jobs import Job
from staffa.options import shown
from staffa.steps import Rows, Statement, Steps, atomic

__all__ = ["PostgresEngine"]

# Rows of one INSERT: beyond a thousand nothing is gained, and the parameter grows.
PER_INSERT = 1_000

# Characters of one INSERT, about: a server takes a parameter of a gigabyte, and needs a multiple of that to read it.
TEXT_PER_INSERT = 16_000_000

# Bytes that the server keeps of a name.
MAX_PREFIX = 63

# Only sent when the row is selected, which is after the jobs have been inserted.
_NOTIFIED = "(SELECT count(pg_notify(:channel, m.value)::text) FROM {each :payloads m})"

INSERT_AND_NOTIFY = f"""
WITH inserted AS ({sql.INSERT_JOB})
SELECT *, {_NOTIFIED} FROM inserted
"""

# Many jobs, as a JSON list. What they share comes as a parameter of its own: a short JSON is read faster.
_INSERT_MANY = """
WITH inserted AS (
    INSERT INTO {jobs} (state, queue, worker, args, meta, tags, max_attempts, priority, inserted_at, scheduled_at)
    SELECT %(state)s, %(queue)s, %(worker)s, x.args, %(meta)s, %(tags)s, %(max_attempts)s, %(priority)s,
        {now}, %(scheduled_at)s
    FROM ROWS FROM (jsonb_to_recordset(:jobs::text::jsonb) AS (%(columns)s)) WITH ORDINALITY AS x
    ORDER BY x.ordinality
    RETURNING id
)
SELECT id, {moment_text {now}}, %(notified)s FROM inserted
"""

# A batch in which every job completed, the usual case.
COMPLETE = """
UPDATE {jobs}
SET state = {state 'completed'}, completed_at = {now}
FROM unnest(:ids::bigint[], :tokens::text[]::timestamp[]) AS s(ack_id, ack_token)
WHERE {jobs}.id = ack_id
    AND attempted_at = ack_token
    AND {opaque state} = 'executing'
    AND attempted_by = {claimed_by :node :uuid}
RETURNING id
"""

# One row says which acks were stored; the others are claimed jobs. The two never touch the same row: what is acked
# is executing in this statement's eyes, what is claimed is available.
_AND_CLAIM = """
WITH acked AS (%s), claimed AS (%s)
SELECT NULL::bigint, (SELECT json_agg(acked.id)::text FROM acked), NULL, NULL, NULL, NULL,
    NULL, NULL, NULL, NULL, NULL, NULL, NULL
UNION ALL
SELECT * FROM claimed
"""

COMPLETE_AND_CLAIM = _AND_CLAIM % (COMPLETE, sql.CLAIM_JOBS)
COMPLETE_AND_CLAIM_KNOWN = _AND_CLAIM % (COMPLETE, sql.CLAIM_KNOWN_JOBS)
ACK_AND_CLAIM = _AND_CLAIM % (sql.ACK_JOBS_BY_ARRAYS, sql.CLAIM_JOBS)
ACK_AND_CLAIM_KNOWN = _AND_CLAIM % (sql.ACK_JOBS_BY_ARRAYS, sql.CLAIM_KNOWN_JOBS)

BEAT_AND_LOOK = f"""
WITH beaten AS ({sql.HEARTBEAT})
{sql.EXECUTING.strip()}
"""

NOTIFY = "SELECT pg_notify(:channel, m.value) FROM {each :payloads m}"


class PostgresEngine(BasicEngine):
    """The verbs whose algorithm differs on PostgreSQL."""

    name = "postgres"
    acks_before_it_claims = False
    notifies = True

    def __init__(self, prefix: str | None = None) -> None:
        if prefix is not None and not _is_schema(prefix):
            raise InvalidOption(
                f"expected prefix to be a schema's name of 1 to {MAX_PREFIX} bytes, without braces and control "
                f"characters, got: {shown(prefix)}",
                option="prefix",
            )
        super().__init__(Dialect(prefix))

    def insert_jobs(self, jobs: Sequence[Job], notice: Notice | None = None) -> Steps[list[Job]]:
        """Store new jobs and wake their queues: in one statement, unless there are very many or large ones."""
        if len(jobs) == 1:
            return (yield from self._insert_one(jobs[0], notice))
        chunks = _cut(jobs)
        if len(chunks) > 1:
            yield from atomic(lambda: self._insert_chunks(chunks, notice))
        elif jobs:
            yield from self._insert_chunk(jobs, notice)
        return list(jobs)

    def notify(self, notice: Notice) -> Steps[None]:
        """Deliver messages."""
        yield self._sql(NOTIFY, **_told(notice))

    def ack_jobs(self, beat: Beat, acks: Sequence[Ack]) -> Steps[list[Lost]]:
        """Store outcomes."""
        template, parameters = self._acks(beat, acks)
        rows = yield self._sql(template, **parameters)
        return (yield from self._refused(beat, acks, [row[0] for row in rows]))

    def ack_and_claim(
        self, beat: Beat, acks: Sequence[Ack], demand: int, unknown: Sequence[str] = ()
    ) -> Steps[Claim]:
        """Store outcomes and claim the next jobs: one statement."""
        if not acks or demand <= 0:
            return (yield from self._ack_and_claim(beat, acks, demand, unknown))
        template, parameters = self._acks(beat, acks)
        completed = template is COMPLETE
        parameters |= {"queue": beat.queue, "demand": demand}
        if unknown:
            template = COMPLETE_AND_CLAIM_KNOWN if completed else ACK_AND_CLAIM_KNOWN
            parameters["unknown"] = payload.encode(list(unknown))
        else:
            template = COMPLETE_AND_CLAIM if completed else ACK_AND_CLAIM
        rows = yield self._sql(template, **parameters)
        stored: list[int] = []
        claims: Rows = []
        for row in rows:
            if row[0] is None:
                stored = payload.decode(row[1] or "[]")
            else:
                claims.append(row)
        lost = yield from self._refused(beat, acks, stored)
        return Claim(claimed(claims, beat), lost, full=len(claims) >= demand)

    def heartbeat(self, beats: Sequence[Beat]) -> Steps[Beaten]:
        """Refresh our producers' rows, and look at what executes under them: one statement."""
        return what_executes((yield self._sql(BEAT_AND_LOOK, beats=beats_text(beats), now=self.now())))

    # Steps.

    def _insert_one(self, job: Job, notice: Notice | None) -> Steps[list[Job]]:
        parameters = self._one(job)
        if notice is None:
            rows = yield self._sql(sql.INSERT_JOB, **parameters)
        else:
            rows = yield self._sql(INSERT_AND_NOTIFY, **parameters, **_told(notice))
        job.id, job._inserted_at, job._scheduled_at = rows[0][:3]
        return [job]

    def _insert_chunks(self, chunks: Sequence[Sequence[Job]], notice: Notice | None) -> Steps[None]:
        for chunk in chunks:
            yield from self._insert_chunk(chunk, notice if chunk is chunks[-1] else None)

    def _insert_chunk(self, jobs: Sequence[Job], notice: Notice | None) -> Steps[None]:
        rows = yield _Chunk(jobs, notice).statement(self.dialect, self.now())
        # Ids were given in the jobs' order, but rows may come back in any.
        ids = sorted(row[0] for row in rows)
        inserted_at: str = rows[0][1]
        moment = clock.from_text(inserted_at)
        for job, id in zip(jobs, ids, strict=True):
            job.id = id
            job._inserted_at = inserted_at
            if job.schedule_in is not None:
                job._scheduled_at = moment + timedelta(seconds=job.schedule_in)
            elif job._scheduled_at is None:
                job._scheduled_at = inserted_at

    def _acks(self, beat: Beat, acks: Sequence[Ack]) -> tuple[str, dict[str, Any]]:
        parameters: dict[str, Any] = {
            "ids": [ack.id for ack in acks],
            "tokens": [ack.token for ack in acks],
            "node": beat.node,
            "uuid": beat.uuid,
            "now": self.now(),
        }
        if all(ack.kind == "complete" for ack in acks):
            return COMPLETE, parameters
        for name in ("kind", "state", "delay", "error"):
            parameters[f"{name}s"] = [getattr(ack, name) for ack in acks]
        return sql.ACK_JOBS_BY_ARRAYS, parameters

    def _refused(self, beat: Beat, acks: Sequence[Ack], stored: Sequence[int]) -> Steps[list[Lost]]:
        if len(stored) == len(acks):
            return []
        known = set(stored)
        return (yield from self._lost(beat, [ack for ack in acks if ack.id not in known]))


def _is_schema(prefix: str) -> bool:
    # The server would cut a longer name off, and braces are spellings in our templates.
    return len(prefix.encode(errors="replace")) <= MAX_PREFIX and not re.search(
        r"[{}\x00-\x1f\x7f-\x9f\ud800-\udfff]", prefix
    )


# Bulk inserts.


def _cut(jobs: Sequence[Job]) -> list[Sequence[Job]]:
    """The jobs of each statement."""
    chunks: list[Sequence[Job]] = []
    first = size = 0
    for index, job in enumerate(jobs):
        text = len(job._args_text) + len(job._meta_text) + len(job._tags_text)
        if index > first and (index - first == PER_INSERT or size + text > TEXT_PER_INSERT):
            chunks.append(jobs[first:index])
            first, size = index, 0
        size += text
    chunks.append(jobs[first:])
    return chunks


# A column of many jobs: how its shared value is spelled, and how each job's own comes out of the JSON.
_COLUMNS = {
    "state": ("{state :state}", "text", "{state x.state}"),
    "queue": (":queue::text", "text", "x.queue"),
    "worker": (":worker::text", "text", "x.worker"),
    "meta": ("{json :meta}", "jsonb", "x.meta"),
    "tags": ("{tag_list :tags}", "jsonb", "{tag_list x.tags::text}"),
    "max_attempts": (":max_attempts::int", "int", "x.max_attempts"),
    "priority": (":priority::int", "int", "x.priority"),
}
_DUE = "coalesce({now} + make_interval(secs => x.delay), x.at, {now})"


class _Row(msgspec.Struct, omit_defaults=True, gc=False):
    """What one job of a bulk insert does not share with all others."""

    args: msgspec.Raw
    state: str | None = None
    queue: str | None = None
    worker: str | None = None
    meta: msgspec.Raw | None = None
    tags: msgspec.Raw | None = None
    max_attempts: int | None = None
    priority: int | None = None
    delay: float | None = None
    at: str | None = None


class _Chunk:
    """Jobs of one statement. Columns in which all are alike travel once."""

    def __init__(self, jobs: Sequence[Job], notice: Notice | None) -> None:
        self.jobs = jobs
        self.notice = notice

    def statement(self, dialect: Dialect, now: str | None) -> Statement:
        values = {name: [*self._values(name)] for name in _COLUMNS}
        shared = {name: column[0] for name, column in values.items() if len(set(column)) == 1}
        varying = [name for name in _COLUMNS if name not in shared]
        due = any(job.schedule_in is not None or job._scheduled_at is not None for job in self.jobs)
        rows = [_Row(msgspec.Raw(job._args_text)) for job in self.jobs]
        for name in varying:
            raw = name in ("meta", "tags")
            for row, value in zip(rows, values[name], strict=True):
                setattr(row, name, msgspec.Raw(value) if raw else value)
        if due:
            for row, job in zip(rows, self.jobs, strict=True):
                row.delay = job.schedule_in
                row.at = None if job.scheduled_at is None else clock.to_text(job.scheduled_at)
        parameters = {**shared, "jobs": payload.encode(rows), "now": now}
        if self.notice is not None:
            parameters |= _told(self.notice)
        template = _insert_many(tuple(varying), due, self.notice is not None)
        return Statement(dialect.render(template), parameters)

    def _values(self, name: str) -> Iterator[Any]:
        match name:
            case "meta":
                return (job._meta_text for job in self.jobs)
            case "tags":
                return (job._tags_text for job in self.jobs)
            case _:
                return (getattr(job, name) for job in self.jobs)


def _insert_many(varying: Sequence[str], due: bool, notified: bool) -> str:
    spelled = {name: own if name in varying else once for name, (once, _, own) in _COLUMNS.items()}
    columns = ["args jsonb", *(f"{name} {_COLUMNS[name][1]}" for name in varying)]
    if due:
        columns += ["delay float8", "at timestamp"]
    return _INSERT_MANY % {
        **spelled,
        "columns": ", ".join(columns),
        "scheduled_at": _DUE if due else "{now}",
        "notified": _NOTIFIED if notified else "NULL",
    }


def _told(notice: Notice) -> dict[str, Any]:
    return {"channel": notice.channel, "payloads": payload.encode(list(notice.payloads))}
