"""`staffa start`: run an instance until it is told to stop."""

import logging
from contextlib import suppress

import click

from staffa import Queue, Staffa, __version__, telemetry
from staffa.cli.render import say
from staffa.cli.target import call, checked_queues, database_file, instance, told_where, with_target
from staffa.errors import InvalidOption

__all__ = ["start"]


@click.command()
@with_target
@click.option(
    "--queues", callback=checked_queues, metavar="NAME=LIMIT,…", help="Queues to run, like default=10,mail=5."
)
@click.option("--node", metavar="NAME", help="This process's name; <host>.<pid> unless said.")
@click.option("--dry-run", is_flag=True, help="Check everything, start nothing.")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"], case_sensitive=False),
    help="How much to log; info unless said.",
)
def start(
    target: str | None,
    database: str | None,
    prefix: str | None,
    queues: dict[str, Queue] | None,
    node: str | None,
    dry_run: bool,
    log_level: str | None,
) -> None:
    """Run jobs until Ctrl-C or SIGTERM.

    Without MODULE:APP an instance is made of --database and --queues, and workers are imported by name from the
    current folder when their jobs come. The first signal lets running jobs finish within the grace period, a
    second one puts them back at once.
    """
    app = instance(target, url=database, prefix=prefix, queues=queues, node=node)
    _require_queues(app, target)
    if dry_run:
        say(f"everything is fine, nothing was started: {_described(app)}, tables {_tables(app)}")
        return
    _set_up_logging(log_level)
    click.echo(f"staffa {__version__}: {_described(app)}; Ctrl-C stops", err=True)
    with told_where(app):
        app.run()


def _require_queues(app: Staffa, target: str | None) -> None:
    if not app.config.queues:
        raise click.ClickException(
            "expected queues to run, got none, so that no job would ever be performed: say "
            f"`staffa start{f' {target}' if target else ''} --queues default=10`, "
            'or in the code Staffa(…, queues={"default": 10})'
        )


def _described(app: Staffa) -> str:
    queues = ", ".join(f"{name}={queue.limit}" for name, queue in app.config.queues.items())
    return f"node {app.config.node}, database {app.config.database.safe}, queues {queues}"


def _tables(app: Staffa) -> str:
    file = database_file(app)
    if file is not None and not file.parent.is_dir():
        raise click.ClickException(
            f"expected a folder {file.parent} for the database file, got none: make it first"
        )
    if file is not None and not file.exists():
        return "will be made (there is no file yet)"
    status = call(app, Staffa.migration_status)
    if file is not None and not status.foreign and status.version < status.latest:
        return f"will be brought from version {status.version} to {status.latest}"
    with told_where(app):
        status.verify()
    if file is None:  # whether the server takes our writes: a change of a job that cannot be there
        call(app, lambda app: app.cancel_job(2**63 - 1))
    return f"at version {status.version}"


def _set_up_logging(level: str | None) -> None:
    if not logging.getLogger().handlers:
        logging.basicConfig(format="%(asctime)s %(levelname)-7s %(message)s", level=logging.INFO)
    if level is not None:
        logging.getLogger("staffa").setLevel(level.upper())
    with suppress(InvalidOption):  # the module has attached it already
        telemetry.attach_default_logger()
