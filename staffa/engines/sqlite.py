"""The engine for SQLite: the embedded default."""

from collections.abc import Callable, Sequence
from datetime import timedelta

from staffa import clock
from staffa.engines.basic import BasicEngine
from staffa.engines.dialect import SQLiteDialect
from staffa.jobs import Job
from staffa.options import check
from staffa.steps import Statement, Steps

__all__ = ["SQLiteEngine"]

INSERT_MANY = """
INSERT INTO {jobs} (state, queue, worker, args, meta, tags, max_attempts, priority, inserted_at, scheduled_at)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""


class SQLiteEngine(BasicEngine):
    """Binds `:now` itself, for SQLite has no clock of its own, and inserts in bulk by `executemany`."""

    name = "sqlite"
    serves_itself = True
    has_prefixes = False
    skips_locked_rows = False

    def __init__(self, prefix: str | None = None) -> None:
        check("prefix", prefix, ok=prefix is None, want="None on SQLite, which has no schemas")
        super().__init__(SQLiteDialect())
        self.now: Callable[[], str | None] = clock.now_text
        self._insert_many = self.dialect.render(INSERT_MANY)

    def _insert_jobs(self, jobs: Sequence[Job]) -> Steps[list[Job]]:
        now = self.now() or clock.now_text()
        scheduled = [_scheduled_at(job, now) for job in jobs]
        yield Statement(
            self._insert_many, many=[_row(job, now, at) for job, at in zip(jobs, scheduled, strict=True)]
        )
        # Nobody else writes inside our transaction, and AUTOINCREMENT counts up by one: the last id tells all.
        rows = yield Statement("SELECT last_insert_rowid()")
        first = rows[0][0] - len(jobs) + 1
        for offset, job in enumerate(jobs):
            job.id = first + offset
            job._inserted_at, job._scheduled_at = now, scheduled[offset]
        return list(jobs)


def _scheduled_at(job: Job, now: str) -> str:
    if job.schedule_in is not None:
        return clock.to_text(clock.from_text(now) + timedelta(seconds=job.schedule_in))
    return now if job._scheduled_at is None else clock.to_text(job.scheduled_at or clock.now())


def _row(job: Job, now: str, scheduled_at: str) -> tuple[object, ...]:
    return (
        job.state,
        job.queue,
        job.worker,
        job._args_text,
        job._meta_text,
        job._tags_text,
        job.max_attempts,
        job.priority,
        now,
        scheduled_at,
    )
