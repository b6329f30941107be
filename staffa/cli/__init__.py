"""The command line, one file per noun: a command parses, calls one public method, and renders.

What goes wrong on purpose (a `StaffaError`) ends as one sentence on stderr and exit code 1; a wrong option as
click has it, with exit code 2; Ctrl-C with 130, as a shell has it.
"""

import io
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import click

from staffa import StaffaError, __version__
from staffa.cli.bench import bench
from staffa.cli.config import config
from staffa.cli.demo import demo
from staffa.cli.jobs import jobs
from staffa.cli.migrate import migrate
from staffa.cli.queues import queues
from staffa.cli.render import cannot_write
from staffa.cli.start import start
from staffa.cli.target import named_as_set

__all__ = ["main"]


class Commands(click.Group):
    """A group whose commands fail in sentences."""

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        """Read the arguments; `--help` and `--version` print here."""
        with _in_sentences():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        with _in_sentences():
            return super().invoke(ctx)


@contextmanager
def _in_sentences() -> Generator[None]:
    """What goes wrong is told, not thrown at the user."""
    try:
        yield
    except StaffaError as error:
        raise click.ClickException(named_as_set(str(error))) from error
    except KeyboardInterrupt as error:
        click.echo("interrupted", err=True)
        raise click.exceptions.Exit(130) from error
    except OSError as error:
        if isinstance(error, BrokenPipeError) or not _is_of_echo(error):
            raise  # click ends quietly when its reader has seen enough
        cannot_write(error)


def _is_of_echo(error: OSError) -> bool:
    """Whether click itself failed to print (a help text, say), and not some file of ours."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals.get("__name__") == click.echo.__module__


@click.group(
    "staffa",
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, message="staffa %(version)s")
def main() -> None:
    """Background jobs that live in the database you already have.

    MODULE:APP is where your instance is, like tasks:app, found from the current folder. Without one, and without
    --database, the configuration says where the jobs are: STAFFA_DATABASE_URL, else DATABASE_URL, else
    [tool.staffa] in pyproject.toml or staffa.toml, else sqlite:///staffa.db.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(
                errors="replace"
            )  # a terminal that cannot show a character is no reason to fail


for command in (start, migrate, jobs, queues, config, bench, demo):
    main.add_command(command)
