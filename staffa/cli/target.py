"""How `--database URL` and `module:app` become an instance, and how a command asks it something."""

import asyncio
import importlib
import os
import re
import shlex
import shutil
import sys
import traceback
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import click

import staffa
from staffa import Queue, Staffa
from staffa.config import parse_queues
from staffa.errors import InvalidOption, SchemaError

__all__ = [
    "call",
    "checked_queues",
    "database_file",
    "has_secret",
    "instance",
    "json_option",
    "named_as_set",
    "require_database",
    "script",
    "search_here",
    "told_where",
    "url_of_file",
    "whereabouts",
    "with_database",
    "with_target",
]

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., object])

HERE = Path(staffa.__file__).parent


# Options that several commands have.


def with_target(command: F) -> F:
    """Give a command `[MODULE:APP]`, `--database` and `--prefix`."""
    return click.argument("target", required=False, metavar="[MODULE:APP]")(with_database(command))


def with_database(command: F) -> F:
    """Give a command `--database` and `--prefix` alone."""
    url = "Where the jobs are, like sqlite:///jobs.db or postgresql://host/name; stronger than the code's."
    schema = "The schema of the tables, where the database has schemas."
    prefixed = click.option("--prefix", metavar="SCHEMA", help=schema)(command)
    return click.option("--database", metavar="URL", help=url)(prefixed)


json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document, for programs.")


def checked_queues(ctx: click.Context, param: click.Parameter, value: str | None) -> dict[str, Queue] | None:
    """A callback for an option like `default=10,mail=5`: refused as click refuses, with the usage and exit code 2."""
    try:
        return None if value is None else parse_queues(value)
    except InvalidOption as error:
        raise click.BadParameter(str(error)) from error


# Instances.


def instance(target: str | None, **flags: Any) -> Staffa:
    """The instance at `module:app`, or one made of the flags alone; the flags decide in both.

    Raises:
        click.ClickException: The target cannot be had; the message says why.
        StaffaError: An option is wrong.
    """
    search_here()
    if flags.get("url") is None:
        _adopt_database_url()
    app = _load(target) if target else Staffa(**flags)
    app.configure(**flags)
    return app


def search_here() -> None:
    """Find modules in the current folder first, as `python -m` does; the script `staffa` alone would not."""
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)


def call(app: Staffa, verb: Callable[[Staffa], Awaitable[T]]) -> T:
    """Ask an instance something, and give its connections up again."""

    async def asked() -> T:
        try:
            return await verb(app)
        finally:
            await app.close()

    with told_where(app):
        return asyncio.run(asked())


@contextmanager
def told_where(app: Staffa) -> Generator[None]:
    """A command that an error tells to run gets what this one was given: without that it would go elsewhere."""
    try:
        yield
    except SchemaError as error:
        given = _target_given()
        if "flag" in (app.config.sources["url"], app.config.sources["prefix"]):
            given += whereabouts(app)
        text = re.sub(r"`(staffa migrate \w+)`", lambda found: f"`{found[1]}{given}`", str(error))
        raise SchemaError(text) from error


def _target_given() -> str:
    context = click.get_current_context(silent=True)
    target = context.params.get("target") if context is not None else None
    return f" {target}" if target else ""


def database_file(app: Staffa) -> Path | None:
    """The file that holds the jobs; None where they are on a server."""
    database = app.config.database
    return Path(database.path).absolute() if database.kind == "sqlite" else None


def url_of_file(file: Path, options: Mapping[str, str] | None = None) -> str:
    """The URL of a SQLite file."""
    return f"sqlite:///{quote(str(file))}{f'?{urlencode(options)}' if options else ''}"


def whereabouts(app: Staffa) -> str:
    """The flags that lead another command to the same tables; a URL with a password is left out, for it would be seen."""
    url, prefix = app.config.url, app.config.prefix
    flags = [] if has_secret(app) else ["--database", url]
    flags += ["--prefix", prefix] if prefix else []
    return "".join(f" {shlex.quote(flag)}" for flag in flags)


def has_secret(app: Staffa) -> bool:
    """Whether the URL has a password, so that it must not be printed."""
    return app.config.database.safe != app.config.url


def script() -> str:
    """How to call this command line again, for commands to paste: `staffa` where that works, else with its path."""
    called = Path(sys.argv[0])
    if called.name == "__main__.py":
        return f"{shlex.quote(sys.executable)} -m staffa"
    found = shutil.which("staffa")
    if found is not None and Path(found).resolve() == called.resolve():
        return "staffa"
    return shlex.quote(str(called.absolute()))


def require_database(app: Staffa) -> None:
    """Refuse a file that is not there: to look into one must not make it, least of all under a misspelt name."""
    file = database_file(app)
    if file is not None and not file.exists():
        raise click.ClickException(
            f"expected a database at {app.config.database.safe}, but there is no file {file}: name another one with "
            "--database, or make it with `staffa migrate up`"
        )


def _adopt_database_url() -> None:
    # Through the environment, so that it is as strong as STAFFA_DATABASE_URL: weaker than what the code says.
    url = os.environ.get("DATABASE_URL")
    if url and not os.environ.get("STAFFA_DATABASE_URL"):
        os.environ["STAFFA_DATABASE_URL"] = url


def named_as_set(text: str) -> str:
    """Say DATABASE_URL where that is what was set, not the variable that it was passed on in."""
    adopted = os.environ.get("DATABASE_URL") == os.environ.get("STAFFA_DATABASE_URL")
    return text.replace("environment STAFFA_DATABASE_URL", "environment DATABASE_URL") if adopted else text


def _load(target: str) -> Staffa:
    name, _, path = target.partition(":")
    words = [*name.split("."), *path.split(".")]
    if not all(word.isidentifier() for word in words) or name.endswith(".py"):
        raise click.ClickException(
            f"expected MODULE:APP, a module and the name of the instance in it, like tasks:app, got: {target!r}"
        )
    module = _imported(name)
    found: object = module
    for attribute in path.split("."):
        if not hasattr(found, attribute):
            raise click.ClickException(
                f"expected the module {name} ({_file_of(module)}) to have {path!r}, got none of that name; "
                f"{_offered(module)}"
            )
        found = getattr(found, attribute)
    if not isinstance(found, Staffa):
        raise click.ClickException(
            f"expected {target} to be a Staffa instance, got: {type(found).__module__}.{type(found).__qualname__}; "
            f"{_offered(module)}"
        )
    return found


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and (name == missing or name.startswith(f"{missing}.")):
            raise click.ClickException(
                f"expected a module {name}, but {missing!r} cannot be found from {os.getcwd()}: go to the folder "
                "that holds it, or put it on PYTHONPATH"
            ) from error
        raise click.ClickException(
            f"{name} cannot be imported: {_where(error)}{type(error).__name__}: "
            f"{named_as_set(str(error)) or '(without a message)'}"
        ) from error


def _where(error: BaseException) -> str:
    """`file:line: `, of the user's last line before it went wrong."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}: "
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith("<") and not _is_ours(frame.filename):
            return f"{frame.filename}:{frame.lineno}: "
    return ""


def _is_ours(filename: str) -> bool:
    return Path(filename).is_relative_to(HERE) or Path(filename) == Path(importlib.__file__)


def _file_of(module: ModuleType) -> str:
    return module.__file__ or "a folder without __init__.py"


def _offered(module: ModuleType) -> str:
    names = [f"{module.__name__}:{name}" for name, value in vars(module).items() if isinstance(value, Staffa)]
    return f"it has: {', '.join(names)}" if names else "it has no instance of Staffa at all"
