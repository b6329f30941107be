"""What staffa does in each workload, the same on every database, through its public names alone."""

import asyncio
from importlib.metadata import version
from time import monotonic_ns, perf_counter
from typing import NoReturn

from benchmarks import loops, probe
from benchmarks.contender import Contender
from staffa import Staffa, job


@job(name="bench.noop")
async def noop(n: int) -> None:
    probe.mark(n)


@job(name="bench.noop_sync")
def noop_sync(n: int) -> None:
    probe.mark(n)


class OnStaffa(Contender):
    unfinished = "SELECT count(*) FROM oban_jobs WHERE state <> 'completed'"
    completed = "SELECT count(*) FROM oban_jobs WHERE state = 'completed'"
    many_queues = True

    @classmethod
    def description(cls) -> str:
        return f"staffa {version('staffa')}"

    def prepare(self) -> None:
        loops.run(self._prepare())

    def fill(self, jobs: int, *, threads: bool) -> None:
        loops.run(self._fill(jobs, threads=threads))

    def work(self, queues: int) -> NoReturn:
        loops.run(self._work(queues))

    def bulk(self, jobs: int) -> float:
        return loops.run(self._bulk(jobs))

    def single(self, jobs: int) -> list[float]:
        return loops.run(self._single(jobs))

    def paced(self, jobs: int, gap: float) -> list[int]:
        return loops.run(self._paced(jobs, gap))

    def together(self, jobs: int, gap: float) -> list[int]:
        return loops.run(self._together(jobs, gap))

    def churn(self, jobs: int, batch: int) -> NoReturn:
        loops.run(self._churn(jobs, batch))

    async def _prepare(self) -> None:
        app = self._app()
        await app.migrate()
        await app.close()

    async def _fill(self, jobs: int, *, threads: bool) -> None:
        app = self._app()
        await app.enqueue_all((noop_sync if threads else noop).new(n) for n in range(jobs))
        await app.close()

    async def _work(self, queues: int) -> NoReturn:
        async with self._app(queues):
            probe.ready()
            await asyncio.Event().wait()
        raise AssertionError("the parent kills this process")

    async def _bulk(self, jobs: int) -> float:
        app = await self._opened()
        before = perf_counter()
        await app.enqueue_all(noop.new(n) for n in range(jobs))
        seconds = perf_counter() - before
        await app.close()
        return seconds

    async def _single(self, jobs: int) -> list[float]:
        app = await self._opened()
        seconds = [await insert(app, n) for n in range(jobs)]
        await app.close()
        return seconds

    async def _paced(self, jobs: int, gap: float) -> list[int]:
        app = self._app()
        moments = await paced(app, jobs, gap)
        await app.close()
        return moments

    async def _together(self, jobs: int, gap: float) -> list[int]:
        async with self._app(queues=1) as app:
            moments = await paced(app, jobs, gap)
            await started(jobs)
        return moments

    async def _churn(self, jobs: int, batch: int) -> NoReturn:
        async with self._app(queues=1) as app:
            probe.ready()
            for first in range(0, jobs, batch):
                last = min(first + batch, jobs)
                await app.enqueue_all(noop.new(n) for n in range(first, last))
                await started(last)
            await asyncio.Event().wait()
        raise AssertionError("the parent kills this process")

    async def _opened(self) -> Staffa:
        app = self._app()
        await app.enqueue(noop.new(0))
        return app

    def _app(self, queues: int = 0) -> Staffa:
        limits = {f"queue_{n}" if n else "default": self.limit for n in range(queues)}
        return Staffa(self.url, queues=limits)


async def insert(app: Staffa, n: int) -> float:
    before = perf_counter()
    await app.enqueue(noop.new(n))
    return perf_counter() - before


async def paced(app: Staffa, jobs: int, gap: float) -> list[int]:
    moments: list[int] = []
    for n in range(jobs):
        moments.append(monotonic_ns())
        await app.enqueue(noop.new(n))
        await asyncio.sleep(gap)
    return moments


async def started(jobs: int) -> None:
    while probe.bodies() < jobs:  # noqa: ASYNC110  shared memory wakes nobody
        await asyncio.sleep(0.005)
