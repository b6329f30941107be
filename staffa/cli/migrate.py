"""`staffa migrate`: make the tables, bring them up to date, look at them, take them away."""

import click

from staffa import Staffa
from staffa.cli.render import counted, print_json, say, states
from staffa.cli.target import call, database_file, instance, json_option, with_target
from staffa.engines.dialect import DIALECTS
from staffa.migrations import ARGS_INDEX, Migration, Migrations, MigrationStatus

__all__ = ["migrate"]


@click.group()
def migrate() -> None:
    """Make the tables, or bring them up to date."""


@migrate.command()
@with_target
@click.option("--to", type=int, metavar="VERSION", help="Stop at this version; the latest unless said.")
@click.option(
    "--args-index",
    is_flag=True,
    help="Also index the arguments of jobs, for those who look for jobs by them.",
)
@json_option
def up(
    target: str | None,
    database: str | None,
    prefix: str | None,
    to: int | None,
    args_index: bool,
    as_json: bool,
) -> None:
    """Take the steps that have not been taken."""
    app = instance(target, url=database, prefix=prefix)
    if args_index and to is not None:
        raise click.UsageError("--args-index needs the latest tables: leave --to out")
    if args_index and app.config.database.kind != "postgres":
        raise click.UsageError(
            f"--args-index is for PostgreSQL, not for {app.config.database.safe}: leave it out"
        )

    async def work(app: Staffa) -> tuple[list[Migration], MigrationStatus]:
        status = await app.migration_status()
        if to is not None and to < status.version:
            raise click.UsageError(
                f"the tables are at version {status.version}, above {to}: `staffa migrate down --to {to}` goes back"
            )
        return await app.migrate(to, args_index=args_index), await app.migration_status()

    steps, status = call(app, work)
    _tell(app, steps, status, as_json, wanted_index=args_index)


@migrate.command()
@with_target
@click.option(
    "--to", type=int, default=0, metavar="VERSION", help="Stop at this version; 0 removes all tables."
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def down(
    target: str | None, database: str | None, prefix: str | None, to: int, yes: bool, as_json: bool
) -> None:
    """Take steps back; version 0 means no tables and no jobs."""
    app = instance(target, url=database, prefix=prefix)
    status = _status(app)
    if status.version > to and not yes:
        click.confirm(f"{_loss(app, status, to)}. Go on?", abort=True, err=True)
    steps = call(app, lambda app: app.migrate(to)) if status.version > to else []
    _tell(app, steps, _status(app), as_json, was_adopted=status.adopted)


@migrate.command("status")
@with_target
@json_option
def show_status(target: str | None, database: str | None, prefix: str | None, as_json: bool) -> None:
    """Tell which version the tables have; exit code 1 unless it is the one that this code works with."""
    app = instance(target, url=database, prefix=prefix)
    status = _status(app)
    _tell(app, [], status, as_json)
    if not status.current:
        raise SystemExit(1)


@migrate.command()
@click.option(
    "--for", "kind", type=click.Choice(sorted(DIALECTS)), required=True, help="The kind of database."
)
@click.option("--prefix", help="The schema that holds the tables.")
def sql(kind: str, prefix: str | None) -> None:
    """Print all steps as SQL, for a project that makes its tables with its own tool."""
    if prefix and kind == "sqlite":
        raise click.UsageError("SQLite has no schemas: leave --prefix out")
    say(Migrations(DIALECTS[kind](prefix)).text(), nl=False)


def _status(app: Staffa) -> MigrationStatus:
    file = database_file(app)
    if file is not None and not file.exists():  # asking would make it
        return MigrationStatus(0, Migrations(DIALECTS["sqlite"]()).latest)
    return call(app, Staffa.migration_status)


def _loss(app: Staffa, status: MigrationStatus, to: int) -> str:
    where = app.config.database.safe
    if to > 0:
        return f"This takes the tables in {where} back to version {to}"
    if status.adopted:
        return (
            f"This removes Staffa's own tables from {where}, and its indexes; Oban's table oban_jobs stays, and so does "
            f"every job in it: {_count(app)}"
        )
    return f"This removes the tables of Staffa from {where}, and {_count(app)} would be lost"


def _count(app: Staffa) -> str:
    by_queue = call(app, Staffa.count_jobs)
    by_state: dict[str, int] = {}
    for counts in by_queue.values():
        for state, count in counts.items():
            by_state[state] = by_state.get(state, 0) + count
    jobs = sum(by_state.values())
    return f"{counted(jobs, 'job')} ({states(by_state)})" if jobs else "no job"


def _tell(
    app: Staffa,
    steps: list[Migration],
    status: MigrationStatus,
    as_json: bool,
    *,
    wanted_index: bool = False,
    was_adopted: bool = False,
) -> None:
    if as_json:
        print_json(
            {
                "database": app.config.database.safe,
                "prefix": app.config.prefix,
                "version": status.version,
                "latest": status.latest,
                "current": status.current,
                "foreign": status.foreign,
                "usable": status.usable,
                "adopted": status.adopted,
                "problem": status.existing if status.foreign and not status.usable else None,
                "steps": [{"version": step.version, "name": step.name} for step in steps],
            }
        )
        return
    for step in steps:
        say(_step(step, status, was_adopted=was_adopted))
    if wanted_index and not any(step.name == ARGS_INDEX for step in steps):
        say("the index oban_jobs_args_index is there already")
    say(f"{_where(app)}: {_sentence(status)}")


def _step(step: Migration, status: MigrationStatus, *, was_adopted: bool) -> str:
    if step.name == ARGS_INDEX:
        return "made: the index oban_jobs_args_index"
    if step.version > status.version:
        ours = ", Staffa's own tables; Oban's stay, with the jobs in them" if was_adopted else ""
        return f"taken back: {step.version} {step.name}{ours}"
    if status.adopted and step.version == 1:
        return f"taken: {step.version} {step.name}, beside Oban's table oban_jobs, which is left as it was"
    return f"taken: {step.version} {step.name}"


def _where(app: Staffa) -> str:
    return app.config.database.safe + (f", schema {app.config.prefix}" if app.config.prefix else "")


def _sentence(status: MigrationStatus) -> str:
    if status.usable:
        return "there is a table oban_jobs of Oban's, which Staffa can use; `staffa migrate up` makes its own tables beside it"
    if status.foreign:
        return f"there is a table oban_jobs that Staffa did not make, and cannot use: {status.existing}"
    if status.version == 0:
        return "there are no tables of Staffa; `staffa migrate up` makes them"
    if status.version < status.latest:
        return f"the tables are at version {status.version} of {status.latest}; `staffa migrate up` brings them up to date"
    if status.version > status.latest:
        return (
            f"the tables are at version {status.version}, newer than this code, which expects {status.latest}"
        )
    beside = ", beside Oban's table oban_jobs" if status.adopted else ""
    return f"the tables are current, version {status.version}{beside}"
