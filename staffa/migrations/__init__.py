"""The tables: how they are made, brought up to date, and taken away again.

Each database has a folder with its steps; `staffa_migrations` has a row for each step that was taken.
Everything here is steps without I/O, so migrations run wherever a connection is: `app.migrate()`, the
command line, or text for a project's own migration tool (`Migrations.text`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from staffa.errors import SchemaError
from staffa.options import check
from staffa.steps import Statement, Steps, atomic

if TYPE_CHECKING:
    from staffa.engines.dialect import Dialect

__all__ = ["Migration", "MigrationStatus", "Migrations"]

JOBS = "oban_jobs"
APPLIED = "staffa_migrations"


@dataclass(frozen=True, slots=True)
class Migration:
    """One step: statements to take it and to take it back, as templates for the dialect."""

    version: int
    name: str
    up: Sequence[str]
    down: Sequence[str]


@dataclass(frozen=True, slots=True)
class MigrationStatus:
    """Where the tables stand: 0 means there are none of ours."""

    version: int
    latest: int
    foreign: bool = False

    @property
    def current(self) -> bool:
        """Whether the tables are those that this version of Staffa works with."""
        return self.version == self.latest and not self.foreign

    def verify(self) -> None:
        """Raise `SchemaError`, saying what to do, unless the tables are current."""
        if self.foreign:
            raise SchemaError(
                f"there is a table {JOBS} that Staffa did not make (no {APPLIED} beside it): "
                "use another database file, or rename that table"
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

    @property
    def latest(self) -> int:
        """The version that this code works with."""
        return self.steps[-1].version

    def status(self) -> Steps[MigrationStatus]:
        """Where the tables stand."""
        rows = yield self._statement("{tables_present}", prefix=self.dialect.prefix)
        tables = {row[0] for row in rows}
        if APPLIED not in tables:
            return MigrationStatus(0, self.latest, foreign=JOBS in tables)
        rows = yield self._statement("SELECT coalesce(max(version), 0) FROM {migrations}")
        version = int(rows[0][0])
        return MigrationStatus(version, self.latest, foreign=version == 0 and JOBS in tables)

    def up(self, version: int | None = None) -> Steps[list[Migration]]:
        """Take every step up to `version` (default: the latest) that has not been taken; returns those."""
        target = self.latest if version is None else version
        self._check(target)
        return (yield from atomic(self._up(target)))

    def down(self, version: int = 0) -> Steps[list[Migration]]:
        """Take back every step above `version`, the newest first; 0 removes all tables and all jobs."""
        self._check(version)
        return (yield from atomic(self._down(version)))

    def text(self) -> str:
        """All steps as one SQL text, for a project that makes its tables with its own tool."""
        statements = [
            self.dialect.render(text) for step in self.steps for text in (*step.up, self._note(step))
        ]
        return "".join(f"{statement};\n\n" for statement in statements)

    def _up(self, target: int) -> Steps[list[Migration]]:
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

    def _down(self, target: int) -> Steps[list[Migration]]:
        status = yield from self.status()
        if status.foreign or status.version > self.latest:
            status.verify()
        steps = [step for step in reversed(self.steps) if target < step.version <= status.version]
        for step in steps:
            yield self._statement(f"DELETE FROM {{migrations}} WHERE version = {step.version}")
            for text in step.down:
                yield self._statement(text)
        return steps

    def _note(self, step: Migration) -> str:
        return f"INSERT INTO {{migrations}} (version, name) VALUES ({step.version}, '{step.name}')"

    def _statement(self, template: str, **parameters: object) -> Statement:
        return Statement(self.dialect.render(template), parameters)

    def _check(self, version: int) -> None:
        check("version", version, ok=0 <= version <= self.latest, want=f"a number from 0 to {self.latest}")
