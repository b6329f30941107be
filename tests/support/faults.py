"""A private PostgreSQL server, real processes on it, and the law that holds after every fault."""

import asyncio
import subprocess
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

import asyncpg

from staffa import Job, Staffa, clock, telemetry
from staffa.steps import Rows
from tests.support.eventually import eventually
from tests.support.processes import Process
from tests.support.servers import PostgresServer, _spawn, free_port, query
from tests.support.store import ServerMissing

__all__ = ["ENQUEUE", "WORK", "Connection", "Events", "PgBouncer", "Scene"]

Connection: TypeAlias = "asyncpg.Connection[Any]"

WORK = "from tests.support.process_jobs import app; app.run()"
ENQUEUE = """
import asyncio
from tests.support.fault_jobs import enqueue_until_told
asyncio.run(enqueue_until_told())
"""

# Generous: several of these processes share a machine with everything else.
SETTLES_WITHIN = 240.0

FINISHED = ("completed", "discarded", "cancelled")


class Scene:
    """A server, worker processes, and what they have noted. Everything ends with the `with` block of the server.

    scene.start()
    await scene.enqueue([brief.new() for _ in range(100)])
    await scene.settles(100)
    scene.law()
    """

    def __init__(self, server: PostgresServer, folder: Path) -> None:
        self.server = server
        self.folder = folder
        self.notes = folder / "notes"
        self.gate = folder / "gate"
        self.acknowledged = folder / "acknowledged"
        self.processes: list[Process] = []
        self.notes.touch()
        self.acknowledged.touch()

    @property
    def url(self) -> str:
        """The server's own, under a name for the tests' connections."""
        return self.server.url + "?application_name=test"

    def start(self, code: str = WORK, url: str | None = None, **environment: str) -> Process:
        """Start a process, by default a worker; its connections are called `node`."""
        url = url or self.server.url
        url += ("&" if "?" in url else "?") + "application_name=node"
        files = {"GATE": str(self.gate), "ACKNOWLEDGED": str(self.acknowledged)}
        self.processes.append(Process(code, url, self.folder, **files, **environment))
        return self.processes[-1]

    def end(self) -> None:
        """End all processes."""
        for process in self.processes:
            process.kill()

    def open_gate(self, which: str = "") -> None:
        """Let gated jobs end, and those who enqueue without end."""
        self.gate.with_name(self.gate.name + which).touch()

    # What there is.

    async def rows(self, what: str, rest: str = "ORDER BY id") -> Rows:
        """Look into the table of jobs."""
        return await query(self.server.url, f"SELECT {what} FROM oban_jobs {rest}")

    async def server_rows(self, text: str, *arguments: object) -> Rows:
        """Ask the server anything."""
        return await query(self.server.url, text, *arguments)

    async def states(self) -> dict[str, int]:
        """How many jobs there are, by state."""
        return {row[0]: row[1] for row in await self.rows("state::text, count(*)", "GROUP BY state")}

    def noted(self, what: str) -> Counter[int]:
        """How often each job did that (`begin`, `end`), by id."""
        lines = [line.split() for line in self.notes.read_text().splitlines()]
        return Counter(int(line[1]) for line in lines if line[0] == what)

    async def make_stale(self, process: Process) -> None:
        """Let 25 seconds pass for a node that cannot beat: only its row says how long it has been silent."""
        text = "UPDATE staffa_producers SET updated_at = '2020-01-01' WHERE node LIKE $1"
        await query(self.server.url, text, f"%.{process.pid}")

    async def lives(self, nodes: int) -> None:
        """Wait until so many nodes beat."""
        text = "SELECT count(*) FROM staffa_producers WHERE updated_at > timezone('UTC', now()) - interval '15 s'"

        async def live() -> bool:
            return await query(self.server.url, text) == [(nodes,)]

        await eventually(live, timeout=SETTLES_WITHIN)

    async def begins(self, jobs: int) -> None:
        """Wait until so many jobs have begun."""
        await eventually(lambda: len(self.noted("begin")) >= jobs, timeout=SETTLES_WITHIN)

    async def settles(self, jobs: int | None = None, *, timeout: float = SETTLES_WITHIN) -> None:
        """Wait until every job has finished, and, when it is said, until there are so many."""

        async def settled() -> bool:
            states = await self.states()
            return set(states) <= set(FINISHED) and jobs in (None, sum(states.values()))

        try:
            await eventually(settled, timeout=timeout)
        except AssertionError:
            raise AssertionError(
                f"{await self.states()} after {timeout:g} s; {self.said()[-6000:]}"
            ) from None

    def said(self) -> str:
        """What all processes have logged."""
        return "".join(f"\n-- process {one.pid} --\n{one.said}" for one in self.processes)

    # The law.

    async def law(self, *, repeats: bool = False, given_back: int = 0) -> None:
        """Every job is in one right state, did its work, and no more often than its row explains.

        Args:
            repeats: Whether rescues may have repeated jobs; without them, each began once.
            given_back: How often a job may have begun and been put back by a stop.
        """
        what = "id, state::text, attempt, coalesce((meta->>'rescued')::int, 0), completed_at, cancelled_at, discarded_at"
        rows = await self.rows(what)
        begun, ended = self.noted("begin"), self.noted("end")
        for id, state, attempt, rescued, *moments in rows:
            finished = [name for name, at in zip(FINISHED, _ordered(moments), strict=True) if at is not None]
            assert finished == [state], f"job {id} is {state}, and was {finished}"
            if state == "completed":
                assert ended[id] >= 1, f"job {id} is completed and never came to its end"
            allowed = attempt + given_back if repeats else 1 + given_back
            assert begun[id] <= allowed, f"job {id} began {begun[id]} times, attempt {attempt}"
            assert attempt == rescued + 1 or state != "completed", (
                f"job {id}: attempt {attempt}, rescued {rescued}"
            )
            assert repeats or rescued == 0, f"job {id} was rescued {rescued} times"
        ids = {row[0] for row in rows}
        acknowledged = {int(line) for line in self.acknowledged.read_text().split()}
        assert acknowledged <= ids, f"acknowledged and lost: {acknowledged - ids}"
        assert set(begun) <= ids, f"begun and not there: {set(begun) - ids}"
        for process in self.processes:
            assert "Traceback" not in process.said, process.said

    async def enqueue(self, jobs: list[Job]) -> list[Job]:
        """Store jobs from here, straight to the server."""
        app = Staffa(self.url)
        try:
            return await app.enqueue_all(jobs)
        finally:
            await app.close()


def _ordered(moments: list[Any]) -> tuple[Any, Any, Any]:
    completed, cancelled, discarded = moments
    return completed, discarded, cancelled


class Events:
    """Which events came for which job, while it is entered."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.seen: list[tuple[str, int]] = []

    def __enter__(self) -> "Events":
        telemetry.attach("faults", self._hear, self.names)
        return self

    def __exit__(self, *_: object) -> None:
        telemetry.detach("faults")

    def _hear(self, name: str, data: Mapping[str, Any]) -> None:
        self.seen.append((name, data["job"].id))


class PgBouncer:
    """A pooler in transaction mode before a server, with its files in a folder; raises `ServerMissing`."""

    def __init__(self, server: PostgresServer, program: str, *, size: int = 4) -> None:
        self.port = free_port()
        self.url = server.url.replace(f":{server.port}/", f":{self.port}/")
        self._log = server.folder / "pgbouncer.log"
        self._ini = server.folder / "pgbouncer.ini"
        self._ini.write_text(f"""
[databases]
* = host=127.0.0.1 port={server.port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {self.port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {size}
max_client_conn = 200
""")
        # `any` takes no user from the client.
        self._ini.write_text(self._ini.read_text().replace("* = host", "* = user=postgres host"))
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None

    async def __aenter__(self) -> "PgBouncer":
        with self._log.open("wb") as log:
            self._process = _spawn([self._program, self._ini], log)
        deadline = clock.monotonic() + 60
        while True:
            with suppress(OSError, asyncpg.PostgresError):
                await query(self.url, "SELECT 1")
                return self
            if self._process.poll() is not None or clock.monotonic() > deadline:
                await self.__aexit__()
                raise ServerMissing(f"PgBouncer did not start; it said: {self._log.read_text()[-2000:]}")
            await asyncio.sleep(0.02)

    async def __aexit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            await asyncio.to_thread(self._process.wait)
