"""Oban for Python, the official port, from which our table comes. It needs Python 3.12 or newer."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from time import monotonic_ns, perf_counter
from typing import Any, ClassVar, NoReturn

from oban import Oban, worker
from oban.schema import install

from benchmarks import loops, probe
from benchmarks.contender import Contender


class Body:
    async def process(self, job: Any) -> None:
        probe.mark(job.args["n"])


Noop: Any = worker(queue="default")(Body)


class OnOban(Contender):
    variants: ClassVar = {
        "100": frozenset({"drain", "bulk", "single", "latency", "idle"}),
        "300": frozenset({"drain"}),
    }
    unfinished = "SELECT count(*) FROM oban_jobs WHERE state <> 'completed'"
    completed = "SELECT count(*) FROM oban_jobs WHERE state = 'completed'"
    many_queues = True

    @classmethod
    def description(cls) -> str:
        return f"oban {version('oban')}"

    def prepare(self) -> None:
        loops.run(self._prepare())

    def fill(self, jobs: int, *, threads: bool) -> None:
        loops.run(self._fill(jobs))

    def work(self, queues: int) -> NoReturn:
        loops.run(self._work(queues))

    def bulk(self, jobs: int) -> float:
        return loops.run(self._bulk(jobs))

    def single(self, jobs: int) -> list[float]:
        return loops.run(self._single(jobs))

    def paced(self, jobs: int, gap: float) -> list[int]:
        return loops.run(self._paced(jobs, gap))

    async def _prepare(self) -> None:
        async with self._pool() as pool:
            await install(pool)

    async def _fill(self, jobs: int) -> None:
        async with self._oban() as oban:
            await oban.enqueue_many([Noop.new({"n": n}) for n in range(jobs)])

    async def _work(self, queues: int) -> NoReturn:
        limits = {f"queue_{n}" if n else "default": int(self.variant) for n in range(queues)}
        async with self._oban(queues=limits):
            probe.ready()
            await asyncio.Event().wait()
        raise AssertionError("the parent kills this process")

    async def _bulk(self, jobs: int) -> float:
        async with self._oban() as oban:
            await insert(0)
            before = perf_counter()
            await oban.enqueue_many([Noop.new({"n": n}) for n in range(jobs)])
            return perf_counter() - before

    async def _single(self, jobs: int) -> list[float]:
        async with self._oban():
            await insert(0)
            return [await insert(n) for n in range(jobs)]

    async def _paced(self, jobs: int, gap: float) -> list[int]:
        moments: list[int] = []
        async with self._oban():
            for n in range(jobs):
                moments.append(monotonic_ns())
                await insert(n)
                await asyncio.sleep(gap)
        return moments

    @asynccontextmanager
    async def _pool(self) -> AsyncIterator[Any]:
        pool = await Oban.create_pool(self.url, min_size=2, max_size=10)
        try:
            yield pool
        finally:
            await pool.close()

    @asynccontextmanager
    async def _oban(self, **options: Any) -> AsyncIterator[Any]:
        async with self._pool() as pool, Oban(pool=pool, **options) as oban:
            yield oban


CONTENDER = OnOban


async def insert(n: int) -> float:
    before = perf_counter()
    await Noop.enqueue({"n": n})
    return perf_counter() - before
