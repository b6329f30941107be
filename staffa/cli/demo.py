"""`staffa demo`: real jobs on real input, in real worker processes, with a proof at the end.

One job for every Python source file of this interpreter's standard library and site-packages. Kill a worker in the
middle if you like: its jobs are rescued, and the sum still holds.
"""

import asyncio
import re
import secrets
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from staffa import DatabaseUnavailable, Job, Staffa
from staffa.cli.demo_jobs import Slow, Totals, parse_file, prepare_figures, slowest, source_files, totals
from staffa.cli.demo_workers import DemoWorkers
from staffa.cli.progress import Progress, progress
from staffa.cli.render import counted, duration, figure, print_json, print_pairs, print_table, say, states
from staffa.cli.target import (
    call,
    database_file,
    has_secret,
    instance,
    json_option,
    script,
    url_of_file,
    whereabouts,
    with_database,
)
from staffa.engines.dialect import DIALECTS
from staffa.migrations import Migrations

__all__ = ["demo"]

FINAL = ("completed", "discarded", "cancelled")

# How many jobs a worker process runs at once.
LIMIT = 8

# Seconds.
LOOK_EVERY, HINT_AFTER, PATIENCE, AWAY = 0.25, 5.0, 20.0, 120.0

SIGNALS = [number for number in signal.Signals if number.name in ("SIGINT", "SIGTERM", "SIGHUP")]

HINT = "waiting for the jobs of dead workers to be rescued, up to 30 s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """How it went."""

    database: str
    figures: str
    queue: str
    enqueued: int
    states: dict[str, int]
    seconds: float
    totals: Totals
    slowest: list[Slow]
    errors: list[tuple[str, int]]
    rescued: int
    workers_lost: int
    show: str | None

    @property
    def sum_holds(self) -> bool:
        """Whether every job that went in has come to an end."""
        return self.enqueued == sum(self.states.values()) == sum(self.states.get(state, 0) for state in FINAL)

    @property
    def sum(self) -> str:
        """The proof, as a line."""
        parts = [
            f"{state} {self.states.get(state, 0):,}"
            for state in FINAL
            if state in self.states or state != "cancelled"
        ]
        return f"enqueued {self.enqueued:,} {'=' if self.sum_holds else '≠'} {' + '.join(parts)}"


@click.command()
@with_database
@click.option(
    "--processes", type=click.IntRange(1, 64), default=2, show_default=True, help="Worker processes."
)
@click.option("--limit", type=click.IntRange(min=1), help="At most so many files; all unless said.")
@click.option(
    "--keep/--no-keep",
    default=True,
    help="Keep what the demo has made to look into it (a temporary folder, tables on a server), or delete it.",
)
@json_option
def demo(
    database: str | None, prefix: str | None, processes: int, limit: int | None, keep: bool, as_json: bool
) -> None:
    """Parse every Python file of your standard library and site-packages, one job each.

    The jobs go into a file in a new temporary folder, unless --database says where; on a server, tables that are
    missing are made.
    """
    given = instance(None, url=database, prefix=prefix) if database else None
    file = database_file(given) if given else None
    if file and not keep:
        raise click.UsageError(
            "--no-keep deletes what the demo has made, and not your file: leave it out beside --database"
        )
    if file and not file.parent.is_dir():
        raise click.ClickException(
            f"expected --database to be a file in a folder that exists, got: {database}"
        )
    temporary = None if file else Path(tempfile.mkdtemp(prefix="staffa-demo-"))
    folder = file.parent if file else temporary
    assert folder is not None
    try:
        app = given or instance(None, url=url_of_file(folder / "jobs.db"), prefix=prefix)
        run = Demo(app, folder, processes, source_files(limit), kept=keep, err=as_json)
        summary = call(app, run.run)
        if as_json:
            print_json(_as_json(summary))
        else:
            _print(summary)
            if keep:
                _print_whereabouts(app, summary, run.made_tables, temporary)
    finally:
        if temporary and (not keep or not any(temporary.iterdir())):
            shutil.rmtree(temporary)
    if not summary.sum_holds:
        raise SystemExit(1)


class Demo:
    """One run: enqueue, let the workers work, watch, sum up."""

    def __init__(
        self, app: Staffa, folder: Path, processes: int, files: list[str], *, kept: bool, err: bool
    ) -> None:
        self.app = app
        self.files = files
        self.processes = processes
        self.kept = kept
        self.err = err
        self.queue = f"demo-{secrets.token_hex(2)}"
        self.figures = folder / "figures.db"
        self.workers = DemoWorkers(processes, app.config, self.queue, LIMIT, folder / "workers.log")
        self.made_tables = False
        self.interrupted = asyncio.Event()

    async def run(self, app: Staffa) -> Summary:
        """From the first job's enqueueing to the last one's end.

        Raises:
            SystemExit: It was interrupted; the message has been printed.
        """
        await self._make_tables()
        try:
            return await self._run()
        finally:
            if not self.kept:
                await self._remove_tables()

    async def _run(self) -> Summary:
        with self._signals():
            await self._enqueue()
            bar = progress(len(self.files), err=self.err)
            started = asyncio.get_running_loop().time()
            try:
                self.workers.start()
                bar.note(_introduced(self.workers.pids))
                await self._watch(bar)
                seconds = asyncio.get_running_loop().time() - started
            finally:
                bar.close()
                self.workers.stop()
                await self.workers.stopped(PATIENCE)
        if self.interrupted.is_set():
            await self._give_up()
        return await self._summary(seconds)

    async def _make_tables(self) -> None:
        """On a server, where otherwise only `staffa migrate` makes them; a file has them made on first use."""
        if database_file(self.app) is not None:
            return
        status = await self.app.migration_status()
        if status.version > 0 or status.foreign:
            status.verify()
            return
        await self.app.migrate()
        self.made_tables = True
        where = self.app.config.database.safe
        self._say(f"there were no tables of Staffa in {where}; made them: {', '.join(_tables(self.app))}")
        if self.kept:
            self._say(f"to remove them again, with all jobs:{_secret(self.app)}\n  {_removal(self.app)}")

    async def _remove_tables(self) -> None:
        """Those that we have made, unless somebody else has begun to use them."""
        if not self.made_tables:
            return
        others = (await self.app.count_jobs()).keys() - {self.queue}
        nodes = [
            info.node for info in await self.app.list_queues() if info.queue != self.queue and info.alive
        ]
        if others or nodes:
            self._say("somebody else has begun to use the tables, so they stay")
        else:
            await self.app.migrate(0)

    async def _enqueue(self) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        made = parse_file.using(queue=self.queue)
        await self.app.enqueue_all(made.new(path, str(self.figures)) for path in self.files)
        prepare_figures(self.figures)
        self._say(
            f"enqueued {counted(len(self.files), 'job')} in {duration(loop.time() - started)}, one for each Python file; "
            f"{counted(self.processes, 'worker')} of {LIMIT} jobs at once perform them"
        )

    async def _watch(self, bar: Progress) -> None:
        """Until all jobs are final, or somebody has had enough."""
        loop = asyncio.get_running_loop()
        moved_at, before, waiting = loop.time(), -1, False
        while not self.interrupted.is_set():
            counts = await self._counts(bar)
            done = sum(counts.get(state, 0) for state in FINAL)
            bar.update(done, counts)
            if done == sum(counts.values()):
                return
            for sentence in self.workers.replace_dead():
                bar.note(sentence)
            if done != before:
                moved_at, before, waiting = loop.time(), done, False
            elif self.workers.lost and not waiting and loop.time() - moved_at >= HINT_AFTER:
                waiting = True
                bar.note(HINT)
            with suppress(TimeoutError):
                await asyncio.wait_for(self.interrupted.wait(), LOOK_EVERY)

    async def _counts(self, bar: Progress) -> dict[str, int]:
        """How many jobs are in which state; a server that is away for a while, as in a restart, is waited for."""
        loop = asyncio.get_running_loop()
        began, told = loop.time(), False
        while True:
            try:
                return (await self.app.count_jobs()).get(self.queue, {})
            except DatabaseUnavailable as error:
                if loop.time() - began > AWAY or self.interrupted.is_set():
                    raise
                if not told:
                    bar.note(f"{error}; trying again until it is back")
                told = True
            with suppress(TimeoutError):
                await asyncio.wait_for(self.interrupted.wait(), 2.0)

    @contextmanager
    def _signals(self) -> Generator[None]:
        """The first signal stops the workers gracefully, the second in haste, the third at once."""
        loop = asyncio.get_running_loop()
        received = 0

        def on_signal() -> None:
            nonlocal received
            received += 1
            self.interrupted.set()
            if received < 3:
                self.workers.stop()
            else:
                self.workers.kill()

        for number in SIGNALS:
            loop.add_signal_handler(number, on_signal)
        try:
            yield
        finally:
            for number in SIGNALS:
                loop.remove_signal_handler(number)

    async def _give_up(self) -> None:
        counts = (await self.app.count_jobs()).get(self.queue, {})
        self._say(f"interrupted, the workers have stopped: {states(counts)}")
        if self.kept:
            self._say(
                f"the jobs are in {self.app.config.database.safe}; to go on with them:{_secret(self.app)}"
            )
            self._say(f"  {script()} start{whereabouts(self.app)} --queues {self.queue}={LIMIT}")
        raise SystemExit(130)

    async def _summary(self, seconds: float) -> Summary:
        found = await self.app.list_jobs(queue=self.queue, limit=len(self.files) + 1)
        discarded = [job for job in found if job.state == "discarded"]
        return Summary(
            database=self.app.config.database.safe,
            figures=str(self.figures),
            queue=self.queue,
            enqueued=len(self.files),
            states=dict(Counter(job.state for job in found)),
            seconds=seconds,
            totals=totals(self.figures, self.queue),
            slowest=slowest(self.figures, self.queue),
            errors=Counter(_kind_of_error(job) for job in discarded).most_common(),
            rescued=sum("rescued" in job.meta for job in found),
            workers_lost=self.workers.lost,
            show=f"{script()} jobs show {discarded[0].id}{whereabouts(self.app)}" if discarded else None,
        )

    def _say(self, text: str) -> None:
        click.echo(text, err=self.err)


def _kind_of_error(job: Job) -> str:
    """Its last error without what differs from file to file."""
    summary = job.errors[-1].summary if job.errors else "no error at all"
    return re.sub(r"'[^']*\.py'", "a file", re.sub(r" \([^()]*, line \d+\)", "", summary))


def _print(summary: Summary) -> None:
    total = sum(summary.states.values())
    say(
        f"\n{counted(total, 'job')} in {duration(summary.seconds)}: {figure(total / summary.seconds)} a second\n"
    )
    rows = [(state, f"{count:,}") for state, count in sorted(summary.states.items())]
    print_table(("STATE", "JOBS"), rows, right=["JOBS"])
    say("\nparsed")
    print_pairs({name: f"{value:,}" for name, value in summary.totals._asdict().items()})
    say("\nthe slowest files")
    print_table(
        ("TIME", "LINES", "FILE"),
        [(duration(slow.seconds), f"{slow.lines:,}", slow.path) for slow in summary.slowest],
        right=["TIME", "LINES"],
    )
    if summary.errors:
        say("\nthe errors of the discarded jobs, each tried three times")
        print_table(("JOBS", "ERROR"), [(f"{n:,}", kind) for kind, n in summary.errors[:5]], right=["JOBS"])
        if len(summary.errors) > 5:
            say(f"and {counted(len(summary.errors) - 5, 'other')}")
    if summary.workers_lost or summary.rescued:
        say(
            f"\n{counted(summary.workers_lost, 'worker')} died, {counted(summary.rescued, 'job')} of theirs rescued"
        )
    say(f"\n{summary.sum}")


def _print_whereabouts(app: Staffa, summary: Summary, made_tables: bool, folder: Path | None) -> None:
    if summary.show:
        say(f"\nlook at a discarded job:{_secret(app)}\n  {summary.show}")
    if made_tables:
        say(f"\nremove the tables, with all jobs:{_secret(app)}\n  {_removal(app)}")
    if folder:
        say(f"\nkept in {folder}; delete it when you like")


def _introduced(pids: list[int]) -> str:
    who = "the worker is process" if len(pids) == 1 else "the workers are the processes"
    return f"{who} {', '.join(map(str, pids))}; kill one if you like (kill -9 {pids[0]}), and the sum still holds"


def _tables(app: Staffa) -> list[str]:
    """Their names, as they would be said without quotes."""
    text = Migrations(DIALECTS[app.config.database.kind](app.config.prefix)).text()
    return [name.replace('"', "") for name in re.findall(r"CREATE (?:UNLOGGED )?TABLE (\S+)", text)]


def _removal(app: Staffa) -> str:
    return f"{script()} migrate down{whereabouts(app)}"


def _secret(app: Staffa) -> str:
    """What is to be done before a command without its URL is pasted."""
    if not has_secret(app):
        return ""
    return " (set STAFFA_DATABASE_URL to the URL first; it is not shown, for it has a password)"


def _as_json(summary: Summary) -> dict[str, Any]:
    return {
        "database": summary.database,
        "figures": summary.figures,
        "queue": summary.queue,
        "enqueued": summary.enqueued,
        "states": summary.states,
        "seconds": summary.seconds,
        "jobs_per_second": sum(summary.states.values()) / summary.seconds,
        "totals": summary.totals._asdict(),
        "slowest": [slow._asdict() for slow in summary.slowest],
        "errors": [{"error": kind, "jobs": count} for kind, count in summary.errors],
        "rescued": summary.rescued,
        "workers_lost": summary.workers_lost,
        "sum": summary.sum,
        "sum_holds": summary.sum_holds,
        "show": summary.show,
    }
