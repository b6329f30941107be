"""The tables: how they are made, brought up to date, and taken away again.

Each database has a folder with its steps; `staffa_migrations` has a row for each step that was taken.
Everything here is steps without I/O, so migrations run wherever a connection is: `app.migrate()`, the
command line, or text for a project's own migration tool (`Migrations.text`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Literal, Protocol

from staffa.errors import DatabaseError, DatabaseUnavailable, SchemaError
from staffa.options import check
from staffa.steps import Statement, Steps, atomic

if TYPE_CHECKING:
    from staffa.engines.dialect import Dialect

__all__ = ["ARGS_INDEX", "Adoption", "Existing", "Index", "Migration", "MigrationStatus", "Migrations"]

JOBS = "oban_jobs"
APPLIED = "staffa_migrations"

# The name under which the first step is noted when Oban's table was there.
ADOPTED = "adopted"
USABLE = "usable"

# The name of the step that nobody takes unless told to.
ARGS_INDEX = "args_index"

# How often an index is begun that other nodes, which adopt the same table, have got in the way of.
TRIES = 10


@dataclass(frozen=True, slots=True)
class Migration:
    """One step: statements to take it and to take it back, as templates for the dialect."""

    version: int
    name: str
    up: Sequence[str]
    down: Sequence[str]


class Existing(Protocol):
    """A table `oban_jobs` that others have made; `problem` says why it cannot be used, if it cannot."""

    @property
    def problem(self) -> str | None:
        """Why not, in a phrase."""
        ...

    @property
    def errors_type(self) -> Literal["jsonb[]", "jsonb"]:
        """What the dialect spells `errors` as."""
        ...

    @property
    def tags_type(self) -> Literal["text[]", "jsonb"]:
        """What the dialect spells `tags` as."""
        ...


@dataclass(frozen=True, slots=True)
class Index:
    """An index that is made beside a table in use, unless it, or one that serves as well, is there."""

    name: str
    text: str
    like: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Adoption:
    """How an existing `oban_jobs` is taken into use: tables beside it, indexes that it lacks, and the way back."""

    look: "Callable[[Dialect], Steps[Existing]]"
    beside: Sequence[str]
    wait: str
    indexes_there: str
    indexes: Sequence[Index]
    drop_index: str
    down: Sequence[str]


@dataclass(frozen=True, slots=True)
class MigrationStatus:
    """Where the tables stand: 0 means there are none of ours.

    `existing` tells of a table `oban_jobs` made by others: `"usable"`, or why it is not; `adopted` says that such a
    one is in use.
    """

    version: int
    latest: int
    existing: str | None = None
    adopted: bool = False

    @property
    def foreign(self) -> bool:
        """Whether there is a table of our name that we did not make, and have not taken into use."""
        return self.existing is not None

    @property
    def usable(self) -> bool:
        """Whether that table can be taken into use."""
        return self.existing == USABLE

    @property
    def current(self) -> bool:
        """Whether the tables are those that this version of Staffa works with."""
        return self.version == self.latest and not self.foreign

    def verify(self) -> None:
        """Raise `SchemaError`, saying what to do, unless the tables are current."""
        if self.usable:
            raise SchemaError(
                f"there is a table {JOBS} of Oban's, which Staffa can use with a few tables of its own beside it: "
                "run `staffa migrate up`"
            )
        if self.existing is not None:
            raise SchemaError(
                f"there is a table {JOBS} that Staffa did not make, and cannot use: {self.existing}"
            )
        if self.version == 0:
            raise SchemaError("the tables of Staffa are missing: run `staffa migrate up`")
        if self.version < self.latest:
            raise SchemaError(
                f"the tables are outdated (version {self.version}, expected {self.latest}): run `staffa migrate up`"
            )
        if self.version > self.latest:
            raise SchemaError(
                f"the tables are newer than this code (version {self.version}, expected {self.latest}): "
                "upgrade the package staffa, or `staffa migrate down` with the newer one"
            )


class Migrations:
    """The migrations of one database, spelled in its dialect."""

    def __init__(self, dialect: "Dialect") -> None:
        self.dialect = dialect
        module = import_module(f"{__name__}.{dialect.name}")
        self.steps: tuple[Migration, ...] = module.MIGRATIONS
        self.adoption: Adoption | None = getattr(module, "ADOPTION", None)
        self.args_index: Index | None = getattr(module, "ARGS_INDEX", None)

    @property
    def latest(self) -> int:
        """The version that this code works with."""
        return self.steps[-1].version

    def status(self) -> Steps[MigrationStatus]:
        """Where the tables stand."""
        rows = yield self._statement("{tables_present}", prefix=self.dialect.prefix)
        tables = {row[0] for row in rows}
        taken: list[tuple[int, str]] = []
        if APPLIED in tables:
            rows = yield self._statement("SELECT version, name FROM {migrations} ORDER BY version")
            taken = [(row[0], row[1]) for row in rows]
        existing = None
        if JOBS in tables:
            existing = yield from self._existing(made_by_us=bool(taken))
        version = taken[-1][0] if taken else 0
        return MigrationStatus(version, self.latest, existing, adopted=(1, ADOPTED) in taken)

    def up(self, version: int | None = None) -> Steps[list[Migration]]:
        """Take every step up to `version` (default: the latest) that has not been taken; returns those."""
        target = self.latest if version is None else version
        self._check(target)
        status = yield from self.status()
        if status.usable and target > 0:
            adopted = yield from self._adopt()
            return [*adopted, *(yield from atomic(lambda: self._up(target)))]
        return (yield from atomic(lambda: self._up(target)))

    def index_args(self) -> Steps[list[Migration]]:
        """Make the index on the arguments of jobs, while they are in use; returns it as a step if it was missing."""
        assert self.adoption is not None, "this kind of database has no such index"
        assert self.args_index is not None
        made = yield from self._index(self.adoption, self.args_index)
        return [Migration(self.latest, ARGS_INDEX, up=(self.args_index.text,), down=())] if made else []

    def drop_schema(self) -> Steps[None]:
        """Take the schema of the prefix away with all that is in it: for one that was made to measure or to test in."""
        check("prefix", self.dialect.prefix, ok=bool(self.dialect.prefix), want="a schema's name")
        yield self._statement(
            f"DROP SCHEMA IF EXISTS {self.dialect.identifier(str(self.dialect.prefix))} CASCADE"
        )

    def down(self, version: int = 0) -> Steps[list[Migration]]:
        """Take back every step above `version`, the newest first; 0 removes all tables and all jobs.

        A table of jobs that others have made stays, with its jobs.
        """
        self._check(version)
        return (yield from atomic(lambda: self._down(version)))

    def text(self) -> str:
        """All steps as one SQL text, for a project that makes its tables with its own tool."""
        statements = [
            self.dialect.render(text) for step in self.steps for text in (*step.up, self._note(step))
        ]
        return "".join(f"{statement};\n\n" for statement in statements)

    # Steps.

    def _existing(self, *, made_by_us: bool) -> Steps[str | None]:
        if self.adoption is None:
            return None if made_by_us else "use another database file, or rename that table"
        existing = yield from self.adoption.look(self.dialect)
        if existing.problem is None:
            self.dialect.adapt(existing.errors_type, existing.tags_type)
        if made_by_us:
            return None
        return existing.problem or USABLE

    def _up(self, target: int) -> Steps[list[Migration]]:
        yield from self._begin()
        # Asked inside the transaction: two processes that start at once must not both take a step.
        status = yield from self.status()
        if status.foreign or status.version > self.latest:
            status.verify()
        steps = [step for step in self.steps if status.version < step.version <= target]
        for step in steps:
            for text in step.up:
                yield self._statement(text)
            yield self._statement(self._note(step))
        return steps

    def _adopt(self) -> Steps[list[Migration]]:
        """Can be broken off anywhere and begun again: only its end is noted."""
        adoption = self.adoption
        assert adoption is not None
        yield from atomic(lambda: self._beside(adoption))
        for index in adoption.indexes:
            yield from self._index(adoption, index)
        noted = yield self._statement(
            f"INSERT INTO {{migrations}} (version, name) VALUES (1, '{ADOPTED}') ON CONFLICT DO NOTHING RETURNING version"
        )
        return [self.steps[0]] if noted else []

    def _index(self, adoption: Adoption, index: Index) -> Steps[bool]:
        """Returns whether it had to be made."""
        # Outside of a transaction, so that nobody has to wait; one that broke off is left behind invalid.
        broken: DatabaseError | None = None
        for tried in range(TRIES):
            there = yield from atomic(lambda: self._indexes(adoption))
            if any(there.get(name) for name in (index.name, *index.like)):
                return tried > 0
            try:
                if index.name in there:
                    yield self._statement(adoption.drop_index % {"name": index.name})
                yield self._statement(index.text)
            except DatabaseError as error:
                if isinstance(error, DatabaseUnavailable) and not error.repeatable:
                    raise
                broken = error  # another node, which adopts the same table, has got in the way
        why = broken or "something else has that name"
        raise SchemaError(
            f"the index {index.name} could not be made ({why}): run `staffa migrate up` again"
        ) from broken

    def _indexes(self, adoption: Adoption) -> Steps[dict[str, bool]]:
        """Those that are there, and whether they are valid: asked while nobody makes one, which would look invalid."""
        yield self._statement(adoption.wait)
        rows = yield self._statement(adoption.indexes_there)
        return {row[0]: bool(row[1]) for row in rows}

    def _beside(self, adoption: Adoption) -> Steps[None]:
        yield from self._begin()
        for text in adoption.beside:
            yield self._statement(text)

    def _down(self, target: int) -> Steps[list[Migration]]:
        yield from self._begin()
        status = yield from self.status()
        if status.foreign or status.version > self.latest:
            status.verify()
        steps = [step for step in reversed(self.steps) if target < step.version <= status.version]
        for step in steps:
            yield self._statement(f"DELETE FROM {{migrations}} WHERE version = {step.version}")
            adopted = status.adopted and step.version == 1 and self.adoption is not None
            for text in self.adoption.down if adopted and self.adoption else step.down:
                yield self._statement(text)
        return steps

    def _begin(self) -> Steps[None]:
        for text in self.dialect.begin_migration():
            yield self._statement(text)

    def _note(self, step: Migration) -> str:
        return f"INSERT INTO {{migrations}} (version, name) VALUES ({step.version}, '{step.name}')"

    def _statement(self, template: str, **parameters: object) -> Statement:
        return Statement(self.dialect.render(template), parameters, patient=True)

    def _check(self, version: int) -> None:
        check("version", version, ok=0 <= version <= self.latest, want=f"a number from 0 to {self.latest}")
