"""The command line is tried through its public doors: click's runner, and real processes."""

import asyncio
import gc
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from click.testing import CliRunner, Result

from staffa import Staffa, telemetry
from staffa.cli import main
from tests.support.servers import query, running_postgres, server_needed, with_database

T = TypeVar("T")

Run = Callable[..., Result]
Spawn = Callable[..., "subprocess.Popen[str]"]
Ask = Callable[[Callable[[Staffa], Awaitable[Any]]], Any]
Eventually = Callable[..., Any]
Sql = Callable[[str], list[Any]]

TASKS = """
from staffa import Staffa, job

app = Staffa("sqlite:///jobs.db", queues={"default": 2})

@job
async def greet(name: str) -> None:
    with open("greetings.txt", "a") as file:
        file.write(f"hello {name}\\n")
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a `tasks.py`, and nothing said about Staffa in the environment."""
    ours = [name for name in os.environ if name.startswith("STAFFA_") and not name.startswith("STAFFA_TEST_")]
    for name in ("DATABASE_URL", "STAFFA_DATABASE_URL", *ours):
        monkeypatch.setenv(name, "")  # so that it is put back, whatever the command line does to it
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "tasks.py").write_text(TASKS)
    yield tmp_path
    telemetry.detach_default_logger()
    for name, module in list(sys.modules.items()):
        if str(tmp_path) in f"{getattr(module, '__file__', '')} {getattr(module, '__path__', '')}":
            vars(sys.modules.pop(name)).clear()  # its workers stay known, and would hold its instance
    gc.collect()


@pytest.fixture
def staffa(project: Path) -> Run:
    """`staffa("jobs", "list")` in the project's folder."""

    def run(*arguments: str, **options: Any) -> Result:
        return CliRunner().invoke(main, arguments, **options)

    return run


@pytest.fixture
def spawn(project: Path) -> Iterator[Spawn]:
    """The same as a process of its own, which does not outlive the test."""
    processes: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-m", "staffa", *arguments],
            cwd=project,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def ask(project: Path) -> Ask:
    """`ask(lambda app: app.enqueue(job))`, on the project's database."""

    def asked(verb: Callable[[Staffa], Awaitable[T]]) -> T:
        async def run() -> T:
            app = Staffa(f"sqlite:///{project}/jobs.db")
            try:
                return await verb(app)
            finally:
                await app.close()

        return asyncio.run(run())

    return asked


@pytest.fixture
def database() -> Iterator[str]:
    """The URL of an empty database on PostgreSQL."""
    with server_needed():
        server = asyncio.run(running_postgres())
    name = f"staffa_cli_{os.getpid()}"
    asyncio.run(query(server, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)'))
    asyncio.run(query(server, f'CREATE DATABASE "{name}"'))
    yield with_database(server, name)
    asyncio.run(query(server, f'DROP DATABASE "{name}" WITH (FORCE)'))


@pytest.fixture
def sql(database: str) -> Sql:
    """`sql("SELECT 1")` there; rows of a single column come as its values."""

    def run(text: str) -> list[Any]:
        rows = asyncio.run(query(database, text))
        return [row[0] if len(row) == 1 else row for row in rows]

    return run


@pytest.fixture
def eventually() -> Eventually:
    """Wait until something is true; fail when it has not become so in time."""

    def wait(condition: Callable[[], Any], within: float = 60.0) -> Any:
        deadline = time.monotonic() + within
        while not (value := condition()):
            assert time.monotonic() < deadline, "it did not become true in time"
            time.sleep(0.02)
        return value

    return wait
