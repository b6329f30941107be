"""A database under test: what every engine has to offer the tests, and what they can do with it."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, TypeAlias, TypeVar

from staffa import payload
from staffa.connections import Connections, connections_for, parse_url
from staffa.engine import Engine
from staffa.engines import engine_for
from staffa.engines.statements import JOB_COLUMNS
from staffa.jobs import COLUMNS, Job
from staffa.steps import Rows, Statement, Steps
from tests.support.producer import Claimer

__all__ = ["Odd", "Plan", "ServerMissing", "Store", "User", "new_job", "recorded"]

T = TypeVar("T")

PAST = "2020-01-01 00:00:00.000000"

# What a foreign program may have left, by the fixture that plants it and by a name: columns of a job, or one value.
Odd: TypeAlias = Mapping[str, Mapping[str, Any]]

JSON = ("args", "meta", "tags", "errors", "attempted_by")

# How the value of a column gets into the database, where it is not simply bound.
SPELLED: Mapping[str, str] = {
    "state": "{state :state}",
    **dict.fromkeys(("args", "meta"), "{json :%s}"),
    **dict.fromkeys(("tags", "attempted_by"), "{json_list :%s}"),
    **dict.fromkeys(("inserted_at", "scheduled_at", "attempted_at"), "{moment :%s}"),
    **dict.fromkeys(("completed_at", "discarded_at", "cancelled_at"), "{moment :%s}"),
}


class ServerMissing(Exception):
    """The database's server cannot be reached; says what to start or to set. Skips locally, fails in CI."""


class Plan(NamedTuple):
    """How the database would run a statement, as far as it concerns the table of jobs."""

    indexes: Sequence[str]
    """What rows are found by: names of indexes, and `PRIMARY KEY` for ids."""
    scans: bool
    """Whether it reads the whole table."""
    sorts: bool
    """Whether it collects rows to sort them."""
    text: str


class User(Protocol):
    """A connection as a user holds it, with the user's own ways to begin, commit and roll back."""

    connection: Any
    commits_by_itself: bool
    """Is each statement outside of a transaction committed at once?"""

    async def execute(self, text: str) -> Rows:
        """Run a statement of the user's; rows as plain tuples."""
        ...

    async def begin(self) -> None:
        """Open a transaction."""
        ...

    async def commit(self) -> None:
        """Commit it."""
        ...

    async def rollback(self) -> None:
        """Roll it back."""
        ...

    def in_transaction(self) -> bool:
        """Is one open?"""
        ...

    async def settings(self) -> object:
        """What the user has set on the connection; it must be the same after we used it."""
        ...


class Store(ABC):
    """A fresh, migrated, empty database of one engine."""

    users: ClassVar[Sequence[str]]
    """The kinds of connections that a user of this database may have."""

    indexes: ClassVar[Mapping[str, str]] = {
        "claim": "oban_jobs_available",
        "due": "oban_jobs_due",
        "executing": "oban_jobs_executing",
        **{name: f"oban_jobs_{name}" for name in ("completed", "discarded", "cancelled")},
    }
    """By what a statement should find its rows, by purpose."""

    serving: Mapping[str, Collection[str]] = {}
    """Other indexes that serve a purpose as well, where a test has made such."""

    odd: ClassVar[Odd]
    """What the columns of this database can hold and Staffa would never write: `odd_row`, columns of a job;
    `odd_meta`, a producer's meta that is no object; `odd_claimant`, an attempted_by that names no producer."""

    spelled: ClassVar[Mapping[str, str]] = SPELLED
    """How the value of a column gets into the database, where it is not simply bound."""

    def __init__(self, url: str, stack: AsyncExitStack) -> None:
        self.url = url
        self.stack = stack
        self.engine: Engine = engine_for(parse_url(url).kind)
        self.connections = self.new_connections()
        self.producer = self.new_producer()

    @classmethod
    @abstractmethod
    def fresh(cls, folder: Path) -> AbstractAsyncContextManager["Store"]:
        """A new one, taken away afterwards; raises `ServerMissing`."""

    @abstractmethod
    async def raw_connection(self) -> Any:
        """A connection of the user's own, as the driver gives it; closed with the store."""

    @abstractmethod
    async def user(self, kind: str) -> User:
        """A connection of one of the kinds in `users`; closed with the store."""

    @abstractmethod
    async def fill(self, count: int) -> None:
        """Plant `count` rows, of every state alike, in five queues, as a busy table has them."""

    @abstractmethod
    async def analyze(self) -> None:
        """Let the database look at its tables, so that it plans by what it saw."""

    @abstractmethod
    async def plan(self, statement: Statement) -> Plan:
        """How the database would run a statement."""

    @abstractmethod
    async def effort(self, statement: Statement) -> int:
        """How much work a statement that only reads is, in a measure of the database's own: to compare two by."""

    async def run(self, steps: Steps[T]) -> T:
        """Run steps, and commit them."""
        return await self.connections.run(steps)

    def new_connections(self) -> Connections:
        """A second node's; closed with the store."""
        connections = connections_for(parse_url(self.url))
        self.stack.push_async_callback(connections.close)
        return connections

    def new_producer(self, queue: str = "default", *, node: str = "node-1", name: str = "staffa") -> Claimer:
        """A producer's side of the verbs."""
        return Claimer(self.engine, self.connections.run, queue=queue, node=node, name=name)

    async def on_nodes(self, *bodies: Callable[[Claimer], Awaitable[T]]) -> list[T]:
        """Run each body in a thread, an event loop and a connection of its own, as so many nodes would."""

        async def node(index: int, body: Callable[[Claimer], Awaitable[T]]) -> T:
            connection = await self.connections.dedicated()
            try:
                return await body(Claimer(self.engine, connection.run, node=f"node-{index}"))
            finally:
                await connection.close()

        running = (asyncio.to_thread(asyncio.run, node(*each)) for each in enumerate(bodies, start=1))
        return await asyncio.gather(*running)

    async def sql(self, template: str, /, **parameters: Any) -> Rows:
        """Any statement, in the dialect's spellings, as plain tuples: to look at rows, and to plant odd ones."""
        statement = Statement(self.engine.migrations.dialect.render(template), parameters)
        return [tuple(row) for row in await self.run(_only(statement))]

    async def statements_of(self, steps: Steps[object]) -> list[Statement]:
        """Run steps; returns the statements that they were."""
        statements: list[Statement] = []
        await self.run(recorded(steps, statements))
        return statements

    # Rows.

    async def snapshot(self) -> dict[int, tuple[Any, ...]]:
        """Every job's row, whole, by id: to see what changed and what did not."""
        return {row[0]: row for row in await self.sql("SELECT * FROM {jobs} ORDER BY id")}

    async def row(self, id: int | None) -> dict[str, Any]:
        """One job's row; moments as text, lists and JSON as canonical text."""
        [row] = await self.sql(f"SELECT {JOB_COLUMNS} FROM {{jobs}} WHERE id = :id", id=id)
        columns: dict[str, Any] = dict(zip(COLUMNS, row, strict=True))
        return {**columns, **{name: _canonical(columns[name]) for name in JSON}}

    async def job(self, id: int | None) -> Job:
        """One job, as the engine reads it."""
        job = None if id is None else await self.run(self.engine.get_job(id))
        assert job is not None
        return job

    async def state(self, id: int | None) -> str:
        """One job's state."""
        return str((await self.row(id))["state"])

    async def states(self) -> list[str]:
        """Every job's state, by id."""
        return [row[0] for row in await self.sql("SELECT {text state} FROM {jobs} ORDER BY id")]

    async def insert(self, **options: Any) -> int:
        """One job; returns its id."""
        [job] = await self.run(self.engine.insert_jobs([new_job(**options)]))
        assert job.id is not None
        return job.id

    async def insert_many(self, count: int, **options: Any) -> list[int]:
        """Several that are alike; returns their ids."""
        jobs = await self.run(self.engine.insert_jobs([new_job(**options) for _ in range(count)]))
        return [job.id for job in jobs if job.id is not None]

    async def plant(self, **columns: Any) -> int:
        """A row as a foreign program may write it; what is not said is the column's own default."""
        said = {"worker": "tests.Foreign", "scheduled_at": PAST, **columns}
        values = ", ".join(self.spelled.get(name, ":%s").replace("%s", name) for name in said)
        await self.sql(f"INSERT INTO {{jobs}} ({', '.join(said)}) VALUES ({values})", **said)
        return int((await self.sql("SELECT max(id) FROM {jobs}"))[0][0])

    async def plant_claimed(
        self, state: str = "executing", by: Claimer | None = None, /, **columns: Any
    ) -> int:
        """A row that a producer has claimed once, whatever its state is now."""
        beat = (by or self.producer).beat
        attempted_by = f'["{beat.node}","{beat.uuid}"]'
        claimed = {"state": state, "attempt": 1, "attempted_at": PAST, "attempted_by": attempted_by}
        return await self.plant(**{**claimed, **columns})


def new_job(*, worker: str = "tests.Worker", **options: Any) -> Job:
    """An unsaved job; only what matters to a test is said."""
    return Job(worker=worker, **options)


def recorded(steps: Steps[T], statements: list[Statement]) -> Steps[T]:
    """The same steps; the statements among them are noted."""
    try:
        item = next(steps)
        while True:
            if isinstance(item, Statement):
                statements.append(item)
            try:
                rows = yield item
            except BaseException as error:
                item = steps.throw(error)
            else:
                item = steps.send(rows)
    except StopIteration as stop:
        value: T = stop.value
    return value


def _canonical(text: str | None) -> str | None:
    """JSON in the one form that tests compare; what is none stays as it is."""
    try:
        return None if text is None else payload.encode(payload.decode(text))
    except ValueError:
        return text


def _only(statement: Statement) -> Steps[Rows]:
    return (yield statement)
