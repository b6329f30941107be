"""huey on SQLite, with `synchronous` at FULL, which is its default, and at OFF, where it is fastest.

Fetching a job deletes it, so a job runs at most once and nothing has to be written when it is done. Jobs are
plain functions in a pool of threads. More threads make it slower, so it gets the number at which it is fastest,
whatever the limit of the others is.
"""

import logging
import time
from importlib.metadata import version
from time import monotonic_ns, perf_counter
from typing import ClassVar, NoReturn

from huey import SqliteHuey
from huey.consumer import Consumer

from benchmarks import probe
from benchmarks.contender import Contender

WORKERS = 1


class Huey(Contender):
    variants: ClassVar = {
        "full": frozenset({"drain", "bulk", "single", "within", "latency", "idle"}),
        "off": frozenset({"drain", "bulk", "single"}),
    }
    unfinished = "SELECT count(*) FROM task"

    def __init__(self, url: str, variant: str, limit: int) -> None:
        super().__init__(url, variant, limit)
        logging.disable(logging.WARNING)
        file = url.removeprefix("sqlite:///")
        self.huey = SqliteHuey("bench", filename=file, results=False, fsync=variant == "full")
        self.noop = self.huey.task(name="noop")(probe.mark)

    @classmethod
    def description(cls) -> str:
        return f"huey {version('huey')} (plain functions, {WORKERS} thread; deletes a job when it fetches it)"

    def fill(self, jobs: int, *, threads: bool) -> None:
        for n in range(jobs):
            self.noop(n)

    def work(self, queues: int) -> NoReturn:
        self.start()
        probe.ready()
        while True:
            time.sleep(60)

    def bulk(self, jobs: int) -> float:
        return sum(self.single(jobs))  # it has no bulk call

    def single(self, jobs: int) -> list[float]:
        self.noop(0)
        return [self.insert(n) for n in range(jobs)]

    def paced(self, jobs: int, gap: float) -> list[int]:
        moments: list[int] = []
        for n in range(jobs):
            moments.append(monotonic_ns())
            self.noop(n)
            time.sleep(gap)
        return moments

    def together(self, jobs: int, gap: float) -> list[int]:
        consumer = self.start()
        moments = self.paced(jobs, gap)
        while probe.bodies() < jobs:
            time.sleep(0.01)
        consumer.stop()
        return moments

    def insert(self, n: int) -> float:
        before = perf_counter()
        self.noop(n)
        return perf_counter() - before

    def start(self) -> Consumer:
        consumer = self.huey.create_consumer(
            workers=WORKERS, periodic=False, initial_delay=0.01, max_delay=0.1, backoff=1.15
        )
        consumer.start()
        return consumer


CONTENDER = Huey
