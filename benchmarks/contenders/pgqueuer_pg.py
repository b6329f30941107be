"""PgQueuer on asyncpg, with the batch sizes at which it was fastest and of our own limit.

The batch size is also that of the buffer in which finished jobs wait to be written. It deletes the row of a job that is
done, and keeps a line in its log.
"""

import asyncio
import json
from datetime import timedelta
from importlib.metadata import version
from time import monotonic_ns, perf_counter
from typing import ClassVar, NoReturn

import asyncpg
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries

from benchmarks import loops, probe
from benchmarks.contender import Contender

PER_CALL = 1_000


class OnPgQueuer(Contender):
    variants: ClassVar = {
        "100": frozenset({"drain", "bulk", "single", "latency", "idle"}),
        "500": frozenset({"drain"}),
    }
    unfinished = "SELECT count(*) FROM pgqueuer"

    @classmethod
    def description(cls) -> str:
        return f"pgqueuer {version('pgqueuer')} (deletes a job when it is done)"

    def prepare(self) -> None:
        loops.run(self._prepare())

    def fill(self, jobs: int, *, threads: bool) -> None:
        self.bulk(jobs, before=0)

    def work(self, queues: int) -> NoReturn:
        loops.run(self._work())

    def bulk(self, jobs: int, before: int = 1) -> float:
        return loops.run(self._bulk(jobs, before))

    def single(self, jobs: int) -> list[float]:
        return loops.run(self._single(jobs))

    def paced(self, jobs: int, gap: float) -> list[int]:
        return loops.run(self._paced(jobs, gap))

    async def _prepare(self) -> None:
        await (await self._queries()).install()

    async def _work(self) -> NoReturn:
        queue = PgQueuer(AsyncpgDriver(await asyncpg.connect(self.url)))

        @queue.entrypoint("noop")
        async def noop(job: Job) -> None:
            probe.mark(json.loads(job.payload or b"")["n"])

        probe.ready()
        await queue.run(batch_size=int(self.variant), dequeue_timeout=timedelta(seconds=30))
        raise AssertionError("the parent kills this process")

    async def _bulk(self, jobs: int, before: int) -> float:
        queries = await self._queries()
        for n in range(before):
            await insert(queries, n)
        began = perf_counter()
        for first in range(0, jobs, PER_CALL):
            numbers = range(first, min(first + PER_CALL, jobs))
            payloads: list[bytes | None] = [payload(n) for n in numbers]
            await queries.enqueue(["noop"] * len(numbers), payloads, [0] * len(numbers))
        return perf_counter() - began

    async def _single(self, jobs: int) -> list[float]:
        queries = await self._queries()
        await insert(queries, 0)
        return [await insert(queries, n) for n in range(jobs)]

    async def _paced(self, jobs: int, gap: float) -> list[int]:
        queries = await self._queries()
        moments: list[int] = []
        for n in range(jobs):
            moments.append(monotonic_ns())
            await insert(queries, n)
            await asyncio.sleep(gap)
        return moments

    async def _queries(self) -> Queries:
        return Queries(AsyncpgDriver(await asyncpg.connect(self.url)))


CONTENDER = OnPgQueuer


def payload(n: int) -> bytes:
    return json.dumps({"n": n}).encode()


async def insert(queries: Queries, n: int) -> float:
    before = perf_counter()
    await queries.enqueue("noop", payload(n), 0)
    return perf_counter() - before
