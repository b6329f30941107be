"""`Staffa`, an instance: its configuration, the way jobs get in, and how it is started and stopped."""

import asyncio
import logging
import os
import sys
import weakref
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib import import_module
from types import TracebackType
from typing import Any, Literal, Never, Self, cast

from staffa import clock, telemetry
from staffa.config import Config
from staffa.connections import connections_for
from staffa.engine import Engine, JobFilter
from staffa.engines import engine_for
from staffa.errors import InvalidJob, InvalidOption, Problem, SchemaError
from staffa.heartbeat import STALE_AFTER
from staffa.jobs import Job, JobState
from staffa.migrations import Migration, MigrationStatus
from staffa.notifiers import notifier_for
from staffa.options import check, shown
from staffa.peers import IsolatedPeer
from staffa.plugin import Plugin
from staffa.plugins import Lifeline, Pruner
from staffa.producer import Producer, Queue
from staffa.registry import enter_instance, forget_instance, leave_instance, register_instance
from staffa.runtime import Runtime
from staffa.services import Services
from staffa.signals import StopSignals
from staffa.steps import Steps
from staffa.worker import Worker, WorkerOptions

__all__ = ["QueueInfo", "Staffa"]

log = logging.getLogger("staffa")


@dataclass(frozen=True, slots=True)
class QueueInfo:
    """One queue on one node, as its last heartbeat told.

    `running` counts jobs that were claimed and not stored yet; `alive` says whether the heartbeat is fresh.
    """

    queue: str
    name: str
    node: str
    uuid: str
    limit: int
    paused: bool
    running: int
    started_at: datetime
    updated_at: datetime
    alive: bool


class Staffa:
    """An instance: enqueues jobs, and runs them where it is told to.

    It connects to nothing until it is used. Enqueue from any event loop; run it inside of your own with
    `async with app:`, or on its own with `staffa start module:app`.

    Example:
        ```python
        from staffa import Staffa, job

        app = Staffa("sqlite:///jobs.db", queues={"default": 10, "mailers": 20})

        @job(name="docs.welcome", queue="mailers", max_attempts=5)
        async def send_welcome(user_id: int) -> None:
            print("welcome,", user_id)

        async def main():
            async with app:
                await send_welcome.enqueue(42)
        ```

    Args:
        url: Where the jobs live: `sqlite:///jobs.db`, `postgresql://user@host/name`. Without one it is
            `STAFFA_DATABASE_URL`, then the project's file, then `sqlite:///staffa.db`. On SQLite, `?synchronous=normal`
            trades the last commits before a power cut for speed, and `?busy_timeout=` says how many seconds to wait for
            another process's lock (10). On PostgreSQL, `?pool_size=` says how many connections there may be (10).
        queues: Limits by name, or `Queue` options; none, and the instance only enqueues.
        plugins: Plugins to run beside the queues. One of a default's class replaces it (`Lifeline`, `Pruner`);
            False runs none.
        name: The instance's name, `"staffa"`; several nodes may share it.
        node: This process's name; by default `<host>.<pid>`.
        prefix: The schema of the tables, where the database has schemas.
        stage_interval: Seconds or a `timedelta` between two looks for due jobs; 1.
        grace_period: Seconds or a `timedelta` that running jobs get to finish when the instance stops; 15.
        notify: Whether processes tell each other of new jobs through the database, where it can; True. With False
            nothing is sent and nobody listens: each node looks every `stage_interval`.

    Raises:
        InvalidOption: Options are wrong; the message names them all.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        queues: Mapping[str, int | Queue] | None = None,
        plugins: Sequence[Plugin] | Literal[False] = (),
        name: str | None = None,
        node: str | None = None,
        prefix: str | None = None,
        stage_interval: float | timedelta | None = None,
        grace_period: float | timedelta | None = None,
        notify: bool | None = None,
        **unknown: Never,
    ) -> None:
        self._arguments: dict[str, Any] = {
            **unknown,
            "url": url, "queues": queues, "name": name, "node": node, "prefix": prefix,
            "stage_interval": stage_interval, "grace_period": grace_period, "notify": notify,
        }  # fmt: skip
        self._flags: dict[str, Any] = {}
        self._checked = False
        self._services: Services | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._starting: asyncio.Task[None] | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._starters = 0  # who called for the present start, and did not give up
        self._entered = 0
        self._started_at = 0.0
        self._built: tuple[int, Runtime] | None = None
        self.config = Config.load(self._arguments)
        self.plugins = _with_defaults(plugins)
        register_instance(self)

    @property
    def name(self) -> str:
        """The instance's name."""
        return self.config.name

    @property
    def database(self) -> str:
        """Where its jobs live: the URL, without its password."""
        return self.config.database.safe

    @property
    def running(self) -> bool:
        """Whether it has been started in this process, and not stopped."""
        ours = self._built is not None and self._built[0] == os.getpid()
        return ours and self._services is not None and self._stopping is None

    def configure(self, **options: Any) -> None:
        """Say options anew, stronger than the constructor's; what the command line does with its flags.

        Args:
            **options: `url`, `queues`, `name`, `node`, `prefix`, `stage_interval`, `grace_period`, `notify`.

        Raises:
            InvalidOption: An option is wrong, or the instance is in use already.
        """
        if self._built is not None:
            raise InvalidOption(
                "an instance cannot be configured after it has been used; if its module uses it while it is imported, "
                "put that under `if __name__ == '__main__':`"
            )
        self.config = Config.load(self._arguments, options)
        self._flags = options

    # Jobs in.

    async def enqueue(self, job: Job, /, *, conn: object = None) -> Job:
        """Store a job; when this returns, it is committed, or belongs to your transaction.

        Example:
            ```python
            from staffa import Job, Staffa

            async def main():
                app = Staffa("sqlite:///jobs.db")
                job = await app.enqueue(Job(worker="shop.tasks.Ship", args={"order": 7}, schedule_in=60))
                print(job.id, job.state)
            ```

        Args:
            job: Made by a worker's `new`, or raw.
            conn: A connection of your own, a `sqlite3.Connection` or one of asyncpg's. The job exists if and only if its transaction
                commits. An error here leaves your transaction usable.

        Returns:
            The same job, with its `id`, `inserted_at` and `scheduled_at`.

        Raises:
            InvalidJob: It is not a job, or it is stored already.
            DatabaseUnavailable: The database cannot be reached or is locked; the job is not stored.
            SchemaError: The tables are missing or of another version.
            UnsupportedConnection: `conn` is of a kind that is not known.
        """
        with _storing([_new(job, "job")]) as new:
            runtime = await self._ready(conn)
            await _refuse_stored(runtime, new, conn)
            stored = await runtime.insert(new, conn)
            stored[0]._tentative = conn is not None
            return stored[0]

    async def enqueue_all(self, jobs: Iterable[Job], /, *, conn: object = None) -> list[Job]:
        """Store many jobs at once, all or none; tens of thousands in one call are fine.

        Args:
            jobs: Any iterable of jobs, also a generator.
            conn: As in `enqueue`.

        Returns:
            The same jobs in the same order, with their ids.

        Raises:
            InvalidJob: One of them is not a new job; the message says which. Nothing is stored.
            DatabaseError: As in `enqueue`. Nothing is stored.
        """
        new = [_new(job, f"jobs[{index}]") for index, job in enumerate(jobs)]
        if len({id(job) for job in new}) < len(new):
            raise InvalidJob("enqueue_all", [Problem("jobs", "each job once", "the same object twice")])
        with _storing(new):
            runtime = await self._ready(conn)
            await _refuse_stored(runtime, new, conn)
            stored = await runtime.insert(new, conn)
            for one in stored:
                one._tentative = conn is not None
            return stored

    # Jobs there are.

    async def get_job(self, id: int, /) -> Job | None:
        """One job by its id; None when there is none."""
        _id(id)
        runtime = await self._ready()
        return await runtime.read(runtime.engine.get_job(id))

    async def list_jobs(
        self,
        *,
        state: str | Sequence[str] | None = None,
        queue: str | Sequence[str] | None = None,
        worker: str | type[Worker] | Sequence[str | type[Worker]] | None = None,
        limit: int = 100,
    ) -> list[Job]:
        """Jobs, the newest first.

        Args:
            state: One state or several, like `"retryable"`.
            queue: One queue or several.
            worker: One worker or several, as names or classes.
            limit: At most so many.

        Raises:
            InvalidOption: A state does not exist, or a list is empty.
        """
        check("limit", limit, ok=_is_positive(limit), want="a positive integer")
        states = _list_of("state", state)
        for one in states or ():
            check("state", one, ok=one in set(JobState), want=f"one of {', '.join(JobState)}")
        where = JobFilter(states, _list_of("queue", queue), _list_of("worker", worker))
        runtime = await self._ready()
        return await runtime.read(runtime.engine.list_jobs(where, limit))

    async def count_jobs(self) -> dict[str, dict[str, int]]:
        """How many jobs there are, by queue and state: `counts["default"]["available"]`."""
        runtime = await self._ready()
        counts = await runtime.read(runtime.engine.count_jobs())
        result: dict[str, dict[str, int]] = {}
        for (queue, state), count in sorted(counts.items()):
            result.setdefault(queue, {})[state] = count
        return result

    async def cancel_job(self, id: int, /) -> Job | None:
        """Cancel a job that has not finished; a running one is stopped, on whichever node it runs.

        Returns:
            The cancelled job; None when it has finished already, or does not exist.
        """
        _id(id)
        runtime = await self._ready()
        job = await runtime.run(runtime.engine.cancel_job(id))
        if job is not None:
            await runtime.notifier.notify("signal", [{"action": "pkill", "job_id": id}])
        return job

    async def retry_job(self, id: int, /) -> Job | None:
        """Make a job available again, whatever became of it, with at least one attempt left.

        Returns:
            The job; None when it is available or running already, or does not exist.
        """
        _id(id)
        runtime = await self._ready()
        job = await runtime.run(runtime.engine.retry_job(id))
        if job is not None:
            await runtime.notifier.notify("insert", [{"queue": job.queue}])
        return job

    async def list_queues(self) -> list[QueueInfo]:
        """Every queue that runs, on every node of this database, as told by their heartbeats."""
        runtime = await self._ready()
        rows = await runtime.read(runtime.engine.producers(STALE_AFTER))
        return [
            QueueInfo(
                queue=row.queue, name=row.name, node=row.node, uuid=row.uuid,
                limit=_count(row.meta.get("limit")), paused=bool(row.meta.get("paused", False)),
                running=_count(row.meta.get("running")), started_at=clock.from_text(row.started_at),
                updated_at=clock.from_text(row.updated_at), alive=row.alive,
            )
            for row in rows
        ]  # fmt: skip

    # Tables.

    async def migrate(self, version: int | None = None, /, *, args_index: bool = False) -> list[Migration]:
        """Bring the tables to a version, by default the latest; 0 removes them with all jobs.

        Args:
            version: Which one.
            args_index: Also make an index for those who look for jobs by their arguments (`args @> '{"user": 7}'`).
                Every change of a job pays for it. PostgreSQL only.

        Returns:
            The steps that were taken, or taken back, in their order.
        """
        runtime = self._runtime()
        migrations = runtime.engine.migrations
        if args_index:
            latest = version in (None, migrations.latest)
            check("version", version, ok=latest, want="left out beside args_index")
            check(
                "args_index",
                True,
                ok=migrations.args_index is not None,
                want="False on this kind of database",
            )
        status = await self.migration_status()
        self._checked = False
        if version is not None and version < status.version:
            return await runtime.run(migrations.down(version))
        steps = await runtime.run(migrations.up(version))
        return [*steps, *await runtime.run(migrations.index_args())] if args_index else steps

    async def migration_status(self) -> MigrationStatus:
        """Which version the tables have, and which this code expects."""
        runtime = self._runtime()
        return await runtime.read(runtime.engine.migrations.status())

    # Running.

    async def __aenter__(self) -> Self:
        await self.start()
        self._entered += 1
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._entered -= 1
        if self._entered <= 0:  # an inner block leaves the outer one running
            self._entered = 0
            await self.close()

    async def start(self) -> None:
        """Run in this event loop: claim and perform jobs until `stop`. A second start does nothing.

        Raises:
            DatabaseError: The database cannot be used; nothing has been started.
        """
        self._forget_parent()
        self._forget_dead_loop()
        while (ending := self._ending()) is not None:
            await asyncio.wait([ending])
        if self._starting is None and self._services is None:
            self._starters = 0
            self._starting = asyncio.create_task(self._start_up(), name="staffa start")
            self._starting.add_done_callback(self._has_started)
        if self._starting is not None:
            await self._share(self._starting)

    async def _share(self, starting: asyncio.Task[None]) -> None:
        """Wait for a start that others may wait for as well; the last one to give up undoes it."""
        self._starters += 1
        try:
            await asyncio.shield(starting)
        except asyncio.CancelledError:
            self._starters -= 1
            if not self._starters and not starting.cancel():
                self._begin_stop()  # it was done, but nobody has seen that
            raise

    def _ending(self) -> asyncio.Task[None] | None:
        """What must be over before a start begins: a stop, or a start that everybody has given up."""
        if self._starting is not None and self._starting.cancelling():
            return self._starting
        return self._stopping

    def _has_started(self, starting: asyncio.Task[None]) -> None:
        if self._starting is starting:
            self._starting = None

    async def stop(self) -> None:
        """Stop: claim no more, let jobs finish within the grace period, put the rest back. A second stop does nothing.

        Once begun it goes on to its end, even if the caller is cancelled: jobs must not be left without a heartbeat.
        """
        self._forget_parent()
        self._forget_dead_loop()
        if self._starting is not None:
            await asyncio.wait([self._starting])
        self._begin_stop()
        if self._stopping is not None:
            await asyncio.shield(self._stopping)

    def _begin_stop(self) -> None:
        if self._stopping is None and self._services is not None:
            self._stopping = asyncio.create_task(self._tear_down(self._services), name="staffa stop")

    async def close(self) -> None:
        """Stop if it runs, and give up its database connections; they open again when it is used again."""
        try:
            await self.stop()
        finally:
            forget_instance(self)
            built, self._built = self._built, None
            if built is not None and built[0] == os.getpid():
                await built[1].connections.close()

    async def _start_up(self) -> None:
        runtime = await self._ready()
        services = Services(runtime, self.config, self.plugins)
        await services.start()
        self._services, self._loop = services, asyncio.get_running_loop()
        self._started_at = clock.monotonic()
        enter_instance(self)
        data = {"instance": self.name, "node": runtime.node, "queues": list(services.producers)}
        telemetry.emit("instance.start", data)

    async def _tear_down(self, services: Services) -> None:
        leave_instance(self)
        try:
            await services.stop()
        finally:
            self._services = self._stopping = None
        seconds = clock.monotonic() - self._started_at
        telemetry.emit(
            "instance.stop", {"instance": self.name, "node": self.config.node, "duration": seconds}
        )

    def _forget_dead_loop(self) -> None:
        """What ran in an event loop that was closed without a stop is gone; its jobs will be rescued."""
        if self._loop is not None and self._loop.is_closed():
            log.error("%r was left running in an event loop that is closed; it begins anew", self)
            leave_instance(self)
            self._services = self._starting = self._stopping = self._loop = None

    def run(self) -> None:
        """Run on its own until SIGINT or SIGTERM; what `staffa start` does.

        The first signal stops gracefully; the second puts running jobs back at once; a third ends the process.
        """
        if not self.config.queues:
            raise InvalidOption(
                'expected queues to run, got none: say Staffa(…, queues={"default": 10})', option="queues"
            )
        with asyncio.Runner(loop_factory=self.loop_factory()) as runner:
            runner.run(self._run_until_signalled())

    @staticmethod
    def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
        """What `run` makes its event loop with: uvloop's where it is installed, for it is faster, else asyncio's.

        Example:
            ```python
            import asyncio
            from staffa import Staffa

            async def main():
                print("in", type(asyncio.get_running_loop()).__name__)

            with asyncio.Runner(loop_factory=Staffa.loop_factory()) as runner:
                runner.run(main())
            ```
        """
        with suppress(ImportError):
            factory: Callable[[], asyncio.AbstractEventLoop] = import_module("uvloop").new_event_loop
            return factory
        return None

    async def _run_until_signalled(self) -> None:
        producers: list[Producer] = []

        def hurry() -> None:
            for producer in producers:
                producer.hurry()

        with StopSignals(self.config.grace_period, hurry) as signals:
            try:
                await self.start()
                producers += self._producers.values()
                for producer in producers:
                    producer.exits = True
                await signals.stopping.wait()
            finally:
                await self.close()
        if any(producer.left_running for producer in producers):
            # Their rows have been given back, so their threads must not go on.
            logging.shutdown()
            sys.stdout.flush()
            os._exit(0)

    # Inside.

    def _whereabouts(self) -> str:
        prefix = f", prefix {self.config.prefix!r}" if self.config.prefix else ""
        return f"{self.database}{prefix}"

    @property
    def _producers(self) -> Mapping[str, Producer]:
        return self._services.producers if self._services is not None else {}

    async def _ready(self, conn: object = None) -> Runtime:
        """The runtime, with the tables in place: made where we may make them, else checked.

        The embedded database is not asked beside a user's connection: it would wait for the user's own transaction.
        """
        runtime = self._runtime()
        if not self._checked and (conn is None or not runtime.engine.serves_itself):
            await runtime.run(_ensured(runtime.engine, self._whereabouts()))
            self._checked = True
        return runtime

    def _runtime(self) -> Runtime:
        """Who we are in this process: made on first use, and anew after a fork."""
        self._forget_parent()
        if self._built is None:
            self._built = (os.getpid(), self._build())
        return self._built[1]

    def _forget_parent(self) -> None:
        """In a forked child: what runs, runs in the parent."""
        if self._built is not None and self._built[0] != os.getpid():
            self._built = self._services = self._loop = self._starting = self._stopping = None
            self._checked = False
            self.config = Config.load(self._arguments, self._flags)

    def _build(self) -> Runtime:
        register_instance(self)
        config = self.config
        connections = connections_for(config.database)
        weakref.finalize(self, connections.release)
        engine = engine_for(config.database.kind, config.prefix)
        notifier = notifier_for(
            connections,
            engine,
            instance=config.name,
            node=config.node,
            prefix=config.prefix,
            enabled=config.notify,
        )
        return Runtime(
            name=config.name,
            node=config.node,
            engine=engine,
            connections=connections,
            notifier=notifier,
            peer=IsolatedPeer(),
        )

    def __repr__(self) -> str:
        return f"<Staffa {self.name!r} {self.config.database.safe}{' running' if self.running else ''}>"


def _ensured(engine: Engine, where: str) -> Steps[None]:
    status = yield from engine.migrations.status()
    if engine.serves_itself and not status.foreign and status.version < status.latest:
        yield from engine.migrations.up()
        status = yield from engine.migrations.status()
    try:
        status.verify()
    except SchemaError as error:
        raise SchemaError(f"{where}: {error}") from None


def _with_defaults(plugins: Sequence[Plugin] | Literal[False]) -> list[Plugin]:
    if plugins is False:
        return []
    for plugin in plugins:
        ok = isinstance(plugin, Plugin)  # pyright: ignore[reportUnnecessaryIsInstance]  # untyped callers
        check("plugins", plugin, ok=ok, want="a list of Plugin instances, or False")
    defaults = [make() for make in (Lifeline, Pruner) if not any(isinstance(one, make) for one in plugins)]
    return [*defaults, *plugins]


def _count(said: object) -> int:
    return said if isinstance(said, int) else 0


def _new(job: object, path: str) -> Job:
    if not isinstance(job, Job):
        raise InvalidJob("", [Problem(path, "a Job (made by a worker's new, or Job(worker=…))", shown(job))])
    if job.id is not None and not job._tentative:
        raise _stored_already(job, path)
    return job


async def _refuse_stored(runtime: Runtime, jobs: Sequence[Job], conn: object) -> None:
    """A job that went into a user's transaction may be given again if that was rolled back: only the rows can tell."""
    ids = [job.id for job in jobs if job.id is not None]
    if not ids:
        return
    look = runtime.engine.held_states(ids)
    found = await (runtime.read(look) if conn is None else runtime.connections.adopt(conn).run(look))
    for index, job in enumerate(jobs):
        if job.id in found:
            raise _stored_already(job, "job" if len(jobs) == 1 else f"jobs[{index}]")


def _stored_already(job: Job, path: str) -> InvalidJob:
    return InvalidJob(
        job.worker, [Problem(path, "a new job", f"one that is stored already, with id {job.id}")]
    )


# The jobs that are being stored at this moment, by identity, and for whom: one object is one row.
_being_stored: dict[int, object] = {}
if hasattr(os, "register_at_fork"):  # where processes can fork
    os.register_at_fork(after_in_child=_being_stored.clear)


@contextmanager
def _storing(jobs: Sequence[Job]) -> Generator[Sequence[Job]]:
    """Refuse a job that somebody else is storing: until that is done, it has no id to tell it by."""
    ours = object()
    try:
        for job in jobs:
            if _being_stored.setdefault(id(job), ours) is not ours:
                problem = Problem("job", "each job once", "an object that is being stored at this moment")
                raise InvalidJob(job.worker, [problem])
        yield jobs
    finally:
        for job in jobs:
            if _being_stored.get(id(job)) is ours:
                del _being_stored[id(job)]


def _id(id: object) -> None:
    check("id", id, ok=_is_positive(id), want="a job's id, a positive integer")


def _is_positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**63


def _list_of(name: str, said: object) -> list[str] | None:
    if said is None:
        return None
    several = isinstance(said, (list, tuple, set, frozenset))
    values = list(cast("Iterable[object]", said)) if several else [said]
    check(name, said, ok=bool(values), want="one value, or a list that is not empty")
    return [_text_of(name, value) for value in values]


def _text_of(name: str, value: object) -> str:
    options = getattr(value, "options", None)
    if isinstance(options, WorkerOptions):
        return options.name
    check(name, value, ok=isinstance(value, str), want="text, or a list of texts")
    return str(value)
