"""PostgreSQL through asyncpg: what a URL says, opening a connection, running a statement, translating errors."""

import os
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from staffa.connections.base import URL
from staffa.connections.parameters import numbered
from staffa.errors import (
    DatabaseError,
    DatabaseUnavailable,
    InvalidOption,
    MissingExtra,
    SchemaError,
)
from staffa.options import did_you_mean, shown
from staffa.steps import Rows, Statement

if TYPE_CHECKING:
    import asyncpg

__all__ = [
    "BEGIN",
    "Settings",
    "connect",
    "driver",
    "execute",
    "is_lost",
    "is_unprepared",
    "settings_of",
    "translated",
    "translated_of_user",
]

# Said aloud, for a database may have another default; the level is the transaction's, so a pooler keeps nothing of it.
BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED"

# Options of ours in a URL; the others are the driver's.
NUMBERS = {"pool_size": 10.0, "connect_timeout": 10.0, "command_timeout": 30.0}

# SQLSTATEs, and classes of them, after which trying again may help.
UNAVAILABLE_CLASSES = ("08", "40", "53", "55", "57", "58")
REPEATABLE = {"40001", "40P01"}
UNPREPARED = {"26000", "42P05"}
READ_ONLY = "25006"
QUEUE_FULL = "54000"
ABORTED = "25P02"


@dataclass(frozen=True, slots=True)
class Settings:
    """What the URL says about a server."""

    dsn: str = field(repr=False)
    safe: str
    topic: str
    pool_size: int
    connect_timeout: float
    command_timeout: float
    application_name: str


def driver() -> ModuleType:
    """asyncpg, or a sentence that says what to install."""
    try:
        import asyncpg
    except ImportError as error:
        raise MissingExtra(
            'PostgreSQL needs the package asyncpg, which is not installed: pip install "staffa[postgres]"'
        ) from error
    return asyncpg


def settings_of(url: URL) -> Settings:
    """What a URL asks for.

    Raises:
        InvalidOption: One of our options has a wrong value, or looks like one that is misspelt.
    """
    parts = urlsplit(url.text)
    given = dict(parse_qsl(parts.query))
    numbers = {name: _number(name, given.pop(name, None)) for name in NUMBERS}
    for name in given:
        hint = did_you_mean(name, list(NUMBERS))
        if "did you mean" in hint:  # anything else is for the driver, or a setting of the server
            raise InvalidOption(f"the url has an unknown option {shown(name)}{hint}", option="url")
    application = given.pop("application_name", "staffa")
    dsn = urlunsplit(("postgresql", parts.netloc, parts.path, urlencode(given), ""))
    return Settings(
        dsn=dsn,
        safe=url.safe.partition("?")[0],
        topic=_topic(url),
        pool_size=int(numbers["pool_size"]),
        connect_timeout=numbers["connect_timeout"],
        command_timeout=numbers["command_timeout"],
        application_name=application,
    )


def _topic(url: URL) -> str:
    """Which database this is, whoever the user is: what names it may stand in the URL's query as well."""
    parts = urlsplit(url.text)
    given = dict(parse_qsl(parts.query))
    user, _, hosts = parts.netloc.rpartition("@")
    port = given.get("port", "")
    if hosts:
        hosts, port = unquote(hosts), ""  # that of the query is not looked at
    hosts = hosts or given.get("host") or os.environ.get("PGHOST", "")
    port = port or os.environ.get("PGPORT", "") or "5432"
    if parts.path:
        name = unquote(parts.path[1:])
    else:
        name = given.get("dbname") or given.get("database") or os.environ.get("PGDATABASE", "")
    name = name or unquote(user.partition(":")[0]) or given.get("user") or os.environ.get("PGUSER", "")
    where = ",".join(host if re.search(r":\d+$", host) else f"{host}:{port}" for host in hosts.split(","))
    services = "".join(f"?{one}={given[one]}" for one in ("service", "servicefile") if one in given)
    return f"postgres://{where}/{name}{services}"


def _number(name: str, text: str | None) -> float:
    if text is None:
        return NUMBERS[name]
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < 1e6 or (name == "pool_size" and number != int(number)):
        unit = "whole number" if name == "pool_size" else "number of seconds"
        raise InvalidOption(
            f"expected {name} in the url to be a positive {unit}, got: {shown(text)}", option="url"
        )
    return number


async def connect(settings: Settings, *, prepares: bool = True) -> "asyncpg.Connection":
    """Open a connection in the running event loop.

    Raises:
        DatabaseUnavailable: The server cannot be reached.
        DatabaseError: It does not let us in; the message says what to do.
    """
    connecting: Callable[..., Awaitable[asyncpg.Connection]] = driver().connect
    try:
        return await connecting(
            settings.dsn,
            timeout=settings.connect_timeout,
            statement_cache_size=100 if prepares else 0,
            server_settings={"application_name": settings.application_name},
        )
    except Exception as error:
        raise _refused(error, settings) from error


def _refused(error: Exception, settings: Settings) -> DatabaseError | InvalidOption:
    """Why no connection could be opened, and the next step."""
    where, said, code = settings.safe, _said(error), _code(error)
    if code is None:
        return _unreached(error, settings)
    if "pg_hba.conf" in said:
        return DatabaseError(f"{where} does not let us in: {said}. Allow it in that file of the server's")
    if code in ("28P01", "28000"):
        return DatabaseError(
            f"{where} does not let us in: {said}. Check the user and the password in the url"
        )
    if code == "3D000":
        return DatabaseError(f"{where}: {said}. Create it (createdb …), or correct the name in the url")
    if code in ("42704", "22023"):  # what is no option of ours or the driver's was passed on as a setting
        known = ", ".join((*NUMBERS, "application_name", "sslmode"))
        return InvalidOption(
            f"the url has an option that the server refuses: {said}. There are {known}, the others of asyncpg, and the "
            "settings of the server",
            option="url",
        )
    if code == "53300":
        return DatabaseUnavailable(
            f"{where}: {said}. Raise max_connections of the server, or lower pool_size in the urls"
        )
    return translated(error, where)


def _unreached(error: Exception, settings: Settings) -> DatabaseError | InvalidOption:
    """The same where the server has not said anything."""
    where, said = settings.safe, _said(error)
    if isinstance(error, ValueError) and not isinstance(error, OSError):
        said = "the port must be a number" if "int()" in said else said
        return InvalidOption(
            f"expected url to be one that asyncpg understands, got {where}: {said}", option="url"
        )
    if isinstance(error, TimeoutError):
        return DatabaseUnavailable(
            f"{where} did not answer within {settings.connect_timeout:g} s: is this the right host, and does a "
            "firewall stand between?"
        )
    if "SSL" in said:
        return DatabaseUnavailable(
            f"{where} could not be reached by TLS: {said}. sslmode and sslrootcert in the url say what is asked for"
        )
    if isinstance(error, OSError):
        return DatabaseUnavailable(
            f"{where} cannot be reached: {said}. Is the server running, and the url right?"
        )
    return translated(error, where)


async def execute(connection: Any, statement: Statement, timeout: float | None) -> Rows:
    """Run one statement; its errors pass as the driver's own."""
    text, names = numbered(statement.text)
    parameters: Mapping[str, Any] = statement.parameters
    arguments = [parameters[name] for name in names]
    rows: Rows = await connection.fetch(
        text, *arguments, timeout=None if statement.patient else timeout, record_class=driver().Record
    )
    return rows


# Errors.


def is_lost(error: BaseException) -> bool:
    """Whether nobody knows what became of the connection: it must not be used again."""
    code = _code(error)
    return code is None or code.startswith(("08", "57P"))


def is_unprepared(error: BaseException) -> bool:
    """Whether a statement that was prepared is not there: a pooler has changed the connection under us."""
    return _code(error) in UNPREPARED


def is_read_only(error: BaseException) -> bool:
    """Whether the server takes no writes (any more)."""
    return _code(error) == READ_ONLY


def translated(error: Exception, where: str) -> DatabaseError:
    """The driver's error as ours, with the next step where there is one."""
    code, said = _code(error), _said(error)
    if code is None:
        return _without_code(error, where, said)
    if code == READ_ONLY:
        return DatabaseUnavailable(
            f"{where} takes no writes: {said}. It is a replica, or was made one: let the url name the primary. "
            "Or the role or the database is read-only by default: see its default_transaction_read_only"
        )
    if code in ("42P01", "3F000", "42704"):
        return SchemaError(
            f"{where}: {said}. The tables of Staffa are missing there: run `staffa migrate up --database {where}`"
        )
    if code == "42703":
        return SchemaError(
            f"{where}: {said}. The tables of Staffa are outdated: run `staffa migrate up --database {where}`"
        )
    if code == "42501":
        return DatabaseError(f"{where}: {said}. Grant its user the right to that, or use one that has it")
    if code == QUEUE_FULL and "NOTIFY" in said:
        full = DatabaseUnavailable(
            f"{where}: {said}: some session listens, and has not ended its transaction for long"
        )
        full.notice_refused = True
        return full
    if code.startswith(UNAVAILABLE_CLASSES):
        unavailable = DatabaseUnavailable(f"{where}: {said}")
        unavailable.repeatable = code in REPEATABLE
        return unavailable
    return DatabaseError(said)


def translated_of_user(error: Exception, where: str) -> DatabaseError:
    """The same for an error on a user's connection, where the transaction is the user's to run again."""
    code, said = _code(error), _said(error)
    if code == READ_ONLY:
        return DatabaseError(f"{said}: enqueue on a conn whose transaction, and whose server, takes writes")
    if code == ABORTED:
        return DatabaseError(
            "conn is in a transaction that an earlier error has aborted: roll it back, then enqueue in a new one"
        )
    unusable = (driver().InterfaceError, RuntimeError)  # busy, closed, given back, or of another event loop
    if code is None and isinstance(error, unusable) and not isinstance(error, driver().DataError):
        return DatabaseError(f"conn cannot be used: {said}{_BUSY if 'another operation' in said else ''}")
    ours = translated(error, where)
    ours.repeatable = False
    return ours


_BUSY = ". Await that one first, or give each task a connection of its own"


def _without_code(error: Exception, where: str, said: str) -> DatabaseError:
    if isinstance(error, TimeoutError):
        return DatabaseUnavailable(f"{where} did not answer in time (command_timeout in the url)")
    asyncpg = driver()
    if isinstance(error, asyncpg.DataError):
        return DatabaseError(said)
    if isinstance(error, (OSError, EOFError, asyncpg.InterfaceError, asyncpg.InternalClientError)):
        return DatabaseUnavailable(f"{where}: the connection was lost: {said}")
    return DatabaseError(f"{where}: {type(error).__name__}: {said}")  # nothing that a server did


def _code(error: BaseException) -> str | None:
    code = getattr(error, "sqlstate", None)
    return code if isinstance(code, str) else None


def _said(error: BaseException) -> str:
    text = re.sub(r"\s+", " ", str(error)).strip().rstrip(".")
    return text or type(error).__name__
