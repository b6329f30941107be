"""PostgreSQL to test on: one that runs already, or a private one that a test may stop and start as it likes."""

import asyncio
import atexit
import getpass
import itertools
import os
import pwd
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Coroutine, Generator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from glob import glob
from pathlib import Path
from typing import Any, Literal, TypeVar

import asyncpg
import pytest

from staffa import clock
from staffa.steps import Rows
from tests.support.store import ServerMissing

__all__ = [
    "POSTGRES_URL",
    "PostgresServer",
    "free_port",
    "query",
    "running_postgres",
    "server_needed",
    "with_database",
]

T = TypeVar("T")
Mode = Literal["fast", "immediate"]

POSTGRES_URL = "STAFFA_TEST_POSTGRES_URL"
"""The environment variable that says which server to test on."""

INSTALL = "install PostgreSQL (its programs initdb and postgres), or set " + POSTGRES_URL

# Where packages of systems put the programs that are not for everybody's PATH.
FOLDERS = (
    "/usr/lib/postgresql/*/bin",
    "/usr/libexec/postgresql*",
    "/usr/pgsql-*/bin",
    "/opt/homebrew/opt/postgresql*/bin",
    "/usr/local/opt/postgresql*/bin",
    "/opt/local/lib/postgresql*/bin",
    "/Applications/Postgres.app/Contents/Versions/*/bin",
)

# Short, for the path of a socket may have about a hundred characters; and open to the account that runs the server.
SHORT = "/tmp"

# Below the ports that systems hand out by themselves, so that a stopped server finds its own port free again.
PORTS = range(15_000, 32_000)

STARTS_WITHIN, STOPS_WITHIN = 60.0, 60.0
SIGNALS: dict[Mode, signal.Signals] = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT}

# Waits for the end of the process that holds its input open, and then ends the server.
GUARD = """
read -r _
kill -INT "$1"
for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do
    [ -e "$2/data/postmaster.pid" ] && sleep 1
done
rm -rf "$2" "$3"
"""


class PostgresServer:
    """A server of one's own on loopback, with a fresh data folder that is taken away in the end.

        with PostgresServer.fresh(tmp_path) as server:
            server.stop("immediate")
            server.start()

    The methods block; in a coroutine that must go on meanwhile: `await asyncio.to_thread(server.restart)`.
    """

    def __init__(self, log: Path, settings: dict[str, str]) -> None:
        self.log = log
        self.settings = {"fsync": "on", "shared_buffers": "16MB", "jit": "off", **settings}
        self.port = 0
        self._folder: Path | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    @classmethod
    def fresh(cls, folder: Path, **settings: str) -> "PostgresServer":
        """A new one, its log in `folder`, to be entered by `with` or `async with`; raises `ServerMissing`."""
        _programs()
        return cls(folder / f"postgres-{len(list(folder.glob('postgres-*')))}.log", settings)

    def __enter__(self) -> "PostgresServer":
        try:
            self._folder = _new_folder()
            _as_account("cp", "-Rp", _template(), self._folder / "data")
            self._start_somewhere()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    async def __aenter__(self) -> "PostgresServer":
        return await asyncio.to_thread(self.__enter__)

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self._remove)

    @property
    def url(self) -> str:
        """Its database `postgres`, as its superuser."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    @property
    def running(self) -> bool:
        """Is it there?"""
        return self._server is not None and self._server.poll() is None

    def start(self) -> None:
        """Start it, on the same port as before; returns when it serves."""
        assert not self.running, "the server runs already"
        options = {
            "port": str(self.port),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": str(self.folder),
            **self.settings,
        }
        arguments = itertools.chain.from_iterable(
            ("-c", f"{name}={value}") for name, value in options.items()
        )
        with self.log.open("ab") as log:
            self._server = _spawn([_programs() / "postgres", "-D", self.folder / "data", *arguments], log)
        self._guard = _guard(self._server.pid, self.folder)
        self._wait_until_it_serves()

    def stop(self, mode: Mode = "fast") -> None:
        """Stop it: `fast` cuts its clients off and closes in order, `immediate` is a crash."""
        if self._guard is not None:
            _end(self._guard, signal.SIGKILL)
        if self._server is not None:
            _end(self._server, SIGNALS[mode])

    def restart(self, mode: Mode = "fast") -> None:
        """Stop it and start it again."""
        self.stop(mode)
        self.start()

    def query(self, text: str, *arguments: object) -> Rows:
        """Run one statement as the superuser; parameters are $1 and so on."""
        return _blocking(lambda: query(self.url, text, *arguments))

    def backends(self, application_name: str = "") -> list[int]:
        """The process ids of the clients' backends, all or those of one application."""
        rows = self.query(f"SELECT pid {BACKENDS} ORDER BY pid", application_name)
        return [row[0] for row in rows]

    def terminate(self, application_name: str = "") -> int:
        """End the clients' backends, as an administrator does; returns how many."""
        return len(self.query(f"SELECT pg_terminate_backend(pid) {BACKENDS}", application_name))

    @property
    def folder(self) -> Path:
        """Its own folder; there is one while it is entered."""
        assert self._folder is not None, "enter the server first: with PostgresServer.fresh(folder) as server"
        return self._folder

    def _start_somewhere(self) -> None:
        """Another process may take the free port first."""
        for _ in range(2):
            self.port = free_port()
            with suppress(ServerMissing):
                self.start()
                return
        self.port = free_port()
        self.start()

    def _wait_until_it_serves(self) -> None:
        assert self._server is not None
        status = self.folder / "data" / "postmaster.pid"
        deadline = clock.monotonic() + STARTS_WITHIN
        while not (status.exists() and _serves(status.read_text(), self._server.pid)):
            if not self.running or clock.monotonic() > deadline:
                self.stop("immediate")
                raise ServerMissing(
                    f"a private PostgreSQL did not start; it said: {self.log.read_text()[-2000:]}"
                )
            _pause()

    def _remove(self) -> None:
        self.stop("immediate")
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


BACKENDS = """
FROM pg_stat_activity
WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND ($1::text = '' OR application_name = $1)
"""


async def query(url: str, text: str, *arguments: object) -> Rows:
    """Run one statement on a connection of its own."""
    connection = await asyncpg.connect(url, timeout=30)
    try:
        return [tuple(row) for row in await connection.fetch(text, *arguments)]
    finally:
        await connection.close()


async def running_postgres() -> str:
    """The URL of a server where we may make databases: the one that is set, else one on the usual port.

    Raises:
        ServerMissing: There is none.
    """
    if url := os.environ.get(POSTGRES_URL):
        if refusal := await _refusal(url):
            raise ServerMissing(f"{POSTGRES_URL} is set, but {refusal}")
        return url
    refusals: list[str] = []
    for user in ("postgres", getpass.getuser()):
        url = f"postgresql://{user}@127.0.0.1:5432/postgres"
        refusal = await _refusal(url)
        if not refusal:
            return url
        refusals.append(f"{url}: {refusal}")
    raise ServerMissing(
        f"no PostgreSQL to test on ({'; '.join(refusals)}): run scripts/test, or set {POSTGRES_URL}"
    )


@contextmanager
def server_needed() -> Generator[None, None, None]:
    """Where `ServerMissing` may come: a missing server is a nuisance on a laptop and an error in CI."""
    try:
        yield
    except ServerMissing as missing:
        if os.environ.get("CI") == "true":
            pytest.fail(str(missing))
        pytest.skip(str(missing))


def with_database(url: str, name: str) -> str:
    """The same server, another of its databases."""
    return re.sub(r"^(\w+://[^/?]*)(/[^?]*)?", rf"\g<1>/{name}", url)


def free_port() -> int:
    """A port of loopback on which nobody listens, and which the system gives to nobody else."""
    for port in random.sample(PORTS, 100):
        with socket.socket() as attempt:
            try:
                attempt.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise ServerMissing(f"no free port between {PORTS.start} and {PORTS.stop}")


async def _refusal(url: str) -> str:
    """Why a server cannot be tested on; empty when it can."""
    asked = "SELECT rolsuper OR rolcreatedb FROM pg_roles WHERE rolname = current_user"
    try:
        async with asyncio.timeout(15):
            [(allowed,)] = await query(url, asked)
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "" if allowed else "this user may not make databases"


@cache
def _programs() -> Path:
    """The folder of the newest initdb and postgres there are."""
    on_path = shutil.which("postgres")
    folders = [Path(found) for pattern in FOLDERS for found in glob(pattern)]
    if on_path:
        folders.insert(0, Path(on_path).resolve().parent)
    complete = [one for one in folders if (one / "initdb").exists() and (one / "postgres").exists()]
    if not complete:
        raise ServerMissing(f"no PostgreSQL is installed here: {INSTALL}")
    return max(complete, key=_version)


def _version(programs: Path) -> list[int]:
    said = subprocess.run([programs / "postgres", "--version"], capture_output=True, text=True, check=False)
    return [int(number) for number in re.findall(r"\d+", said.stdout)[:2]]


@cache
def _account() -> str | None:
    """Who runs the server: PostgreSQL refuses to be root, so another account if we are."""
    if os.geteuid() != 0:
        return None
    known = {one.pw_name for one in pwd.getpwall()}
    return next((name for name in ("postgres", "nobody") if name in known), None)


@cache
def _template() -> Path:
    """A data folder to copy, made once: copying takes a tenth of the time."""
    folder = _new_folder()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    superuser = ("--username=postgres", "--auth=trust")
    quick = ("--no-sync", "--wal-segsize=1", "--encoding=UTF8", "--no-locale")
    _as_account(_programs() / "initdb", "--pgdata", folder / "template", *superuser, *quick)
    return folder / "template"


def _new_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="staffa-postgres-", dir=SHORT))
    if account := _account():
        shutil.chown(folder, account)
    return folder


def _as_account(*command: str | Path) -> None:
    with tempfile.TemporaryFile() as output:
        if _spawn(command, output).wait() != 0:
            output.seek(0)
            said = output.read().decode(errors="replace")
            raise ServerMissing(f"{Path(command[0]).name} failed: {said[-2000:]}")


def _spawn(command: Sequence[str | Path], output: Any) -> "subprocess.Popen[bytes]":
    """A process of the account's, in a session of its own: Ctrl-C is for us, who then end it in order."""
    account = _account()
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        cwd="/",
        env={"PATH": os.environ["PATH"], "LC_ALL": "C", "TZ": "UTC"},
        start_new_session=True,
        user=account,
        group=pwd.getpwnam(account).pw_gid if account else None,
        extra_groups=[] if account else None,
    )


def _guard(pid: int, folder: Path) -> "subprocess.Popen[bytes]":
    """Ends the server even if we are killed, who cannot do it then."""
    command = ["sh", "-c", GUARD, "staffa-guard", str(pid), str(folder), str(_template().parent)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)


def _end(process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    """Signal a process and wait for its end; no more if it has ended."""
    if process.poll() is None:
        process.send_signal(number)
        try:
            process.wait(STOPS_WITHIN)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.stdin is not None:
        process.stdin.close()


def _serves(status: str, pid: int) -> bool:
    """What the server says of itself in its lock file: the first line its pid, the eighth how far it is."""
    lines = status.splitlines()
    return len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() == "ready"


def _pause() -> None:
    threading.Event().wait(0.01)


def _blocking(coroutine: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine in a thread and a loop of its own, whether or not this thread has a loop."""
    answers: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            answers.append(asyncio.run(coroutine()))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="query")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return answers[0]
