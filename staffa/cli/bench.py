"""`staffa bench`: what a user's own machine and disk can do, measured the way jobs really go."""

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter
from typing import Any

import click

from staffa import Job, Staffa, job, telemetry
from staffa.cli.render import duration, figure, print_json, print_table, say
from staffa.cli.target import database_file, instance, json_option, url_of_file, with_database
from staffa.connections import connections_for, parse_url
from staffa.engines import engine_for

__all__ = ["bench"]

# Single enqueues and latencies are measured one by one; more of them would only take longer.
SINGLES, LATENCIES = 1_000, 500


@job
async def nothing() -> None:
    """A job of the measurement: only Staffa's own work is left."""


@job
def nothing_in_a_thread() -> None:
    """The same as a plain function."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What was measured, in seconds and jobs a second."""

    enqueue_median: float
    enqueue_rate: float
    bulk_rate: float
    async_rate: float
    thread_rate: float
    latency_p50: float
    latency_p95: float
    latency_p99: float


@click.command()
@with_database
@click.option(
    "--jobs", "count", type=click.IntRange(min=10), default=10_000, show_default=True, help="How many jobs."
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="The queue's limit: jobs at once.",
)
@json_option
def bench(database: str | None, prefix: str | None, count: int, limit: int, as_json: bool) -> None:
    """Measure what your database can do.

    It makes tables of its own, and takes them away afterwards: in a temporary file beside yours (the same folder, so
    the same disk), or on a server in a new schema of the same database, or in the one that --prefix names, where no tables
    may be yet. Your jobs are not touched.
    """
    theirs = instance(None, url=database, prefix=prefix)
    file = _file_beside(theirs)
    with asyncio.Runner(loop_factory=Staffa.loop_factory()) as runner:  # as `staffa start` runs
        if file is not None:
            figures = runner.run(_measure_file(file, theirs.config.database.options, count, limit))
        else:
            figures = runner.run(_measure_schema(theirs.config.url, prefix, count, limit))
    if as_json:
        where = {"folder": str(file.parent)} if file else {"database": theirs.database}
        print_json({**where, "jobs": count, "limit": limit, **asdict(figures)})
    elif file is not None:
        _print(figures, f"{file}, a temporary file beside yours; it has been deleted", count, limit)
    else:
        _print(figures, f"{theirs.database}, in tables of its own; they have been deleted", count, limit)


def _file_beside(app: Staffa) -> Path | None:
    """Where to measure; None on a server."""
    file = database_file(app)
    if file is None:
        return None
    if not file.parent.is_dir():
        raise click.ClickException(
            f"expected a file in a folder that exists, got: {app.config.database.safe}"
        )
    return file.parent / f"staffa-bench-{secrets.token_hex(4)}.db"


async def _measure_file(file: Path, options: Mapping[str, str], count: int, limit: int) -> Figures:
    try:
        return await _measure(url_of_file(file, options), None, count, limit)
    finally:
        for leftover in file.parent.glob(f"{file.name}*"):
            leftover.unlink()


async def _measure_schema(url: str, prefix: str | None, count: int, limit: int) -> Figures:
    schema = prefix or f"staffa_bench_{secrets.token_hex(4)}"
    connections = connections_for(parse_url(url))
    migrations = engine_for(connections.url.kind, schema).migrations
    try:
        status = await connections.run(migrations.status())
        if status.version or status.foreign:
            raise click.ClickException(
                f"expected a schema without tables of Staffa's to measure in, got: {schema!r}"
            )
        await connections.run(migrations.up())
        try:
            return await _measure(url, schema, count, limit)
        finally:  # a schema of theirs stays, for they may not be able to make it again
            if prefix:
                await connections.run(migrations.down())
            else:
                await connections.run(migrations.drop_schema())
    finally:
        await connections.close()


def _print(figures: Figures, where: str, count: int, limit: int) -> None:
    rows = [
        (
            "enqueue one by one",
            f"{figure(figures.enqueue_rate)} jobs/s",
            f"median {duration(figures.enqueue_median)}",
        ),
        ("enqueue_all", f"{figure(figures.bulk_rate)} jobs/s", f"{count:,} in one call"),
        ("perform async jobs", f"{figure(figures.async_rate)} jobs/s", f"limit {limit}, one process"),
        ("perform def jobs", f"{figure(figures.thread_rate)} jobs/s", f"limit {limit}, one process, threads"),
        (
            "from enqueue to start",
            duration(figures.latency_p50),
            f"p95 {duration(figures.latency_p95)}, p99 {duration(figures.latency_p99)}",
        ),
    ]
    print_table(("WHAT", "RESULT", "DETAIL"), rows, right=["RESULT"])
    say(f"measured on {where}")


# Measuring.


class Stops:
    """Waits until so many jobs of a queue are done and stored."""

    def __init__(self, queue: str, count: int) -> None:
        self.queue = queue
        self.left = count
        self.done = asyncio.Event()

    def __call__(self, name: str, data: Mapping[str, Any]) -> None:
        if data["job"].queue == self.queue:
            self.left -= 1
            if self.left == 0:
                self.done.set()


async def _measure(url: str, prefix: str | None, count: int, limit: int) -> Figures:
    queue = f"bench-{secrets.token_hex(2)}"
    app = Staffa(url, prefix=prefix, queues={queue: limit})
    try:
        singles = await _enqueue_singles(app, min(count, SINGLES))
        bulk = await _enqueue_bulk(app, [nothing.using(queue=queue).new() for _ in range(count)])
        coroutines = await _drain(app, queue, count)
        await app.enqueue_all(nothing_in_a_thread.using(queue=queue).new() for _ in range(count))
        threads = await _drain(app, queue, count)
        latencies = await _latencies(app, queue, min(count, LATENCIES))
    finally:
        await app.close()
    p = quantiles(latencies, n=100)
    return Figures(
        enqueue_median=median(singles),
        enqueue_rate=len(singles) / sum(singles),
        bulk_rate=count / bulk,
        async_rate=count / coroutines,
        thread_rate=count / threads,
        latency_p50=p[49],
        latency_p95=p[94],
        latency_p99=p[98],
    )


async def _enqueue_singles(app: Staffa, count: int) -> list[float]:
    """Into a queue that nobody runs."""
    await app.migrate()
    parked = nothing.using(queue="bench-parked")
    took: list[float] = []
    for _ in range(count):
        unsaved = parked.new()
        started = perf_counter()
        await app.enqueue(unsaved)
        took.append(perf_counter() - started)
    return took


async def _enqueue_bulk(app: Staffa, jobs: Sequence[Job]) -> float:
    started = perf_counter()
    await app.enqueue_all(jobs)
    return perf_counter() - started


async def _drain(app: Staffa, queue: str, count: int) -> float:
    """Seconds from the start of the instance until the last job is stored."""
    stops = Stops(queue, count)
    telemetry.attach("staffa-bench-stops", stops, ["job.stop"])
    try:
        started = perf_counter()
        async with app:
            await stops.done.wait()
            return perf_counter() - started
    finally:
        telemetry.detach("staffa-bench-stops")


async def _latencies(app: Staffa, queue: str, count: int) -> list[float]:
    """Seconds from the call of enqueue until the job begins, in a process that is otherwise idle."""
    starts: asyncio.Queue[float] = asyncio.Queue()
    telemetry.attach(
        "staffa-bench-starts", lambda name, data: starts.put_nowait(perf_counter()), ["job.start"]
    )
    made = nothing.using(queue=queue)
    latencies: list[float] = []
    try:
        async with app:
            for _ in range(count):
                unsaved = made.new()
                enqueued = perf_counter()
                await app.enqueue(unsaved)
                latencies.append(await starts.get() - enqueued)
    finally:
        telemetry.detach("staffa-bench-starts")
    return latencies
