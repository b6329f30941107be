"""`staffa jobs`: find jobs, look at one, cancel and retry them."""

import json
import re
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import cast

import click

from staffa import Job, JobState, Staffa
from staffa.cli.render import (
    MOMENTS,
    ago,
    clean,
    job_as_json,
    moment,
    one_line,
    print_json,
    print_pairs,
    print_table,
    say,
    value_or_text,
)
from staffa.cli.target import call, instance, json_option, require_database, with_database, with_target

__all__ = ["jobs"]

with_ids = click.argument("words", nargs=-1, required=True, metavar="ID… [MODULE:APP]")

Verb = Callable[[Staffa, int], Awaitable[Job | None]]


@click.group()
def jobs() -> None:
    """Find jobs, look at one, cancel and retry them."""


@jobs.command("list")
@with_target
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice([state.value for state in JobState]),
    help="Only this state; repeatable.",
)
@click.option("--queue", "queues", multiple=True, help="Only this queue; repeatable.")
@click.option("--worker", "workers", multiple=True, help="Only this worker, by its full name; repeatable.")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="At most so many.")
@json_option
def list_jobs(
    target: str | None,
    database: str | None,
    prefix: str | None,
    states: Sequence[str],
    queues: Sequence[str],
    workers: Sequence[str],
    limit: int,
    as_json: bool,
) -> None:
    """List jobs, the newest first."""
    app = instance(target, url=database, prefix=prefix)
    require_database(app)
    found = call(
        app,
        lambda app: app.list_jobs(
            state=states or None, queue=queues or None, worker=workers or None, limit=limit
        ),
    )
    if as_json:
        print_json([job_as_json(job) for job in found])
    elif not found:
        say("no such jobs" if states or queues or workers else "no jobs")
    else:
        print_table(
            ("ID", "STATE", "QUEUE", "WORKER", "ATTEMPT", "WHEN", "ARGS"),
            [_row(j) for j in found],
            right=["ID"],
        )
        if len(found) == limit:
            say(f"(the newest {limit}; --limit shows more)")


@jobs.command()
@with_database
@with_ids
@json_option
def show(words: Sequence[str], database: str | None, prefix: str | None, as_json: bool) -> None:
    """Show everything about a job: its arguments, its moments, its errors with their tracebacks."""
    app, ids = _app_and_ids(words, database, prefix)

    async def look(app: Staffa) -> list[Job | None]:
        return [await app.get_job(id) for id in ids]

    found = call(app, look)
    for id, job in zip(ids, found, strict=True):
        if job is None:
            raise click.ClickException(f"there is no job {id} in {app.config.database.safe}")
    there = [job for job in found if job is not None]
    if as_json:
        print_json(job_as_json(there[0]) if len(there) == 1 else [job_as_json(job) for job in there])
        return
    for job in there:
        _print_job(job)


@jobs.command()
@with_database
@with_ids
@json_option
def cancel(words: Sequence[str], database: str | None, prefix: str | None, as_json: bool) -> None:
    """Cancel jobs that have not finished; a running one is stopped, on whichever node it runs."""
    _change(words, database, prefix, as_json, Staffa.cancel_job)


@jobs.command()
@with_database
@with_ids
@json_option
def retry(words: Sequence[str], database: str | None, prefix: str | None, as_json: bool) -> None:
    """Make jobs available again, whatever became of them, with at least one attempt left."""
    _change(words, database, prefix, as_json, Staffa.retry_job)


def _change(
    words: Sequence[str], database: str | None, prefix: str | None, as_json: bool, verb: Verb
) -> None:
    """One verb on each id; exit code 1 when a job was not changed."""
    app, ids = _app_and_ids(words, database, prefix)

    async def work(app: Staffa) -> list[tuple[Job | None, Job | None]]:
        changed = [await verb(app, id) for id in ids]
        return [(new, new or await app.get_job(id)) for id, new in zip(ids, changed, strict=True)]

    results = call(app, work)
    if as_json:
        print_json(
            [
                {"id": id, "changed": new is not None, "state": now.state if now else None}
                for id, (new, now) in zip(ids, results, strict=True)
            ]
        )
    else:
        for id, (new, now) in zip(ids, results, strict=True):
            say(f"job {id}: {_fate(new, now)}")
    if any(new is None for new, _ in results):
        raise SystemExit(1)


def _fate(new: Job | None, now: Job | None) -> str:
    if now is None:
        return "there is no such job"
    return now.state if new is not None else f"left as it is, for it is {now.state} already"


def _app_and_ids(words: Sequence[str], database: str | None, prefix: str | None) -> tuple[Staffa, list[int]]:
    targets = [word for word in words if ":" in word]
    if len(targets) > 1:
        raise click.UsageError(f"expected one MODULE:APP at most, got: {', '.join(targets)}")
    ids = [_id(word) for word in words if ":" not in word]
    if not ids:
        raise click.UsageError("expected at least one job's id, got none")
    app = instance(targets[0] if targets else None, url=database, prefix=prefix)
    require_database(app)
    return app, ids


def _id(word: str) -> int:
    if not re.fullmatch(r"[0-9]{1,19}", word):
        raise click.UsageError(f"expected a job's id, a positive integer, got: {word!r}")
    return int(word)


# For people.


def _row(job: Job) -> tuple[str, ...]:
    attempt = f"{job.attempt}/{job.max_attempts}"
    args = one_line(_shown(value_or_text(job, "args")))
    return str(job.id), job.state, job.queue, job.worker, attempt, ago(_since(job)), args


def _since(job: Job) -> datetime | None:
    """The moment that matters in the job's state: when it ended, began, or is due."""
    match job.state:
        case "executing":
            return job.attempted_at
        case "completed":
            return job.completed_at
        case "discarded":
            return job.discarded_at
        case "cancelled":
            return job.cancelled_at
        case _:
            return job.scheduled_at


def _print_job(job: Job) -> None:
    say(f"job {job.id}: {job.state}")
    print_pairs(
        {
            "worker": job.worker,
            "queue": job.queue,
            "attempt": f"{job.attempt} of {job.max_attempts}",
            "priority": str(job.priority),
            "tags": ", ".join(map(str, _tags(job))) or "–",
            "attempted by": " ".join(map(str, job.attempted_by)) or "–",
            **{name.replace("_", " "): moment(getattr(job, name)) for name in MOMENTS},
        }
    )
    for name in ("args", "meta"):
        say(f"{name}:\n{_indented(clean(_shown(value_or_text(job, name), indent=2)))}")
    for failure in job.errors:
        say(f"\nattempt {failure.attempt} failed at {moment(failure.at)}:\n{_indented(clean(failure.error))}")


def _tags(job: Job) -> list[object]:
    tags = value_or_text(job, "tags")
    return cast("list[object]", tags) if isinstance(tags, list) else [tags]


def _shown(value: object, indent: int | None = None) -> str:
    """JSON, or the text that is none."""
    return value if isinstance(value, str) else json.dumps(value, indent=indent, ensure_ascii=False)


def _indented(text: str) -> str:
    return "\n".join(f"  {line}".rstrip() for line in text.splitlines())
