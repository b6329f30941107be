"""The floor on PostgreSQL as the smallest worker: it listens, and runs a task for each job. Not a framework.

It shows what a worker costs above the floor, and how soon after an insert a job can start at all: the insert tells
of itself in its own statement, and the worker claims as soon as it is told.
"""

import asyncio
from time import monotonic_ns
from typing import Any, ClassVar, NoReturn

import asyncpg

from benchmarks import loops, probe
from benchmarks.contender import Contender
from benchmarks.floors.postgres import CLAIM, INDEX, INSERT, ME, SCHEMA, connected, insert_many

TELL = f"WITH job AS ({INSERT}) SELECT id, pg_notify('jobs', '') FROM job"
POLL = 1.0


class Mini(Contender):
    variants: ClassVar = {"": frozenset({"drain", "latency", "idle"})}
    unfinished = "SELECT count(*) FROM jobs WHERE state <> 'completed'"
    completed = "SELECT count(*) FROM jobs WHERE state = 'completed'"

    @classmethod
    def description(cls) -> str:
        return "mini (the floor with LISTEN, and a task for each job)"

    def prepare(self) -> None:
        loops.run(self._prepare())

    def fill(self, jobs: int, *, threads: bool) -> None:
        loops.run(self._fill(jobs))

    def work(self, queues: int) -> NoReturn:
        loops.run(self._work())

    def paced(self, jobs: int, gap: float) -> list[int]:
        return loops.run(self._paced(jobs, gap))

    async def _prepare(self) -> None:
        await (await asyncpg.connect(self.url)).execute(SCHEMA + INDEX["oban1"])

    async def _fill(self, jobs: int) -> None:
        await insert_many(await connected(self.url), range(jobs))

    async def _paced(self, jobs: int, gap: float) -> list[int]:
        insert = await (await connected(self.url)).prepare(TELL)
        moments: list[int] = []
        for n in range(jobs):
            moments.append(monotonic_ns())
            await insert.fetchrow("bench.noop", "default", {"n": n}, 20, 0)
            await asyncio.sleep(gap)
        return moments

    async def _work(self) -> NoReturn:
        claim = await (await connected(self.url)).prepare(CLAIM.format(columns="*"))
        listener = await asyncpg.connect(self.url)
        worker = Worker(claim, self.limit)
        await listener.add_listener("jobs", worker.told)
        probe.ready()
        await worker.run()


class Worker:
    """Claims as many jobs as may run, runs each in a task, and sends the acks along with the next claim."""

    def __init__(self, claim: Any, limit: int) -> None:
        self.claim, self.free = claim, limit
        self.wake = asyncio.Event()
        self.acks: list[int] = []
        self.tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> NoReturn:
        while True:
            self.wake.clear()
            acks, self.acks = self.acks, []
            rows = await self.claim.fetch(self.free, ME, acks)
            self.free -= len(rows)
            for row in rows:
                task = asyncio.create_task(self.job(row))
                self.tasks.add(task)
                task.add_done_callback(self.tasks.discard)
            if rows:
                await asyncio.sleep(0)  # jobs that end at once are acknowledged by the next claim
            elif not self.acks:
                await self.woken()

    async def job(self, row: Any) -> None:
        probe.mark(row["args"]["n"])
        self.acks.append(row["id"])
        self.free += 1
        self.wake.set()

    def told(self, *message: object) -> None:
        self.wake.set()

    async def woken(self) -> None:
        try:
            async with asyncio.timeout(POLL):
                await self.wake.wait()
        except TimeoutError:
            pass


CONTENDER = Mini
