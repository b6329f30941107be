"""Jobs, and a process that enqueues them, for tests in which servers and networks fail.

A job that waits goes on when the file `GATE` is there; whoever enqueues notes in `ACKNOWLEDGED` what was stored.
"""

import asyncio
import logging
import os
import random
import time
from pathlib import Path

from staffa import RunningJob, job
from staffa.errors import DatabaseUnavailable
from tests.support.eventually import eventually
from tests.support.process_jobs import app, note

__all__ = ["brief", "brief_in_thread", "enqueue_until_told", "gated", "gated_twice", "gated_unless_rescued"]

log = logging.getLogger(__name__)

LONGEST = 0.02


@job
async def brief(job: RunningJob) -> None:
    note("begin", job)
    await asyncio.sleep(random.uniform(0, LONGEST))
    note("end", job)


@job
def brief_in_thread(job: RunningJob) -> None:
    note("begin", job)
    time.sleep(random.uniform(0, LONGEST))
    note("end", job)


@job
async def gated(job: RunningJob) -> None:
    note("begin", job)
    await _gate()
    note("end", job)


@job
async def gated_unless_rescued(job: RunningJob) -> None:
    note("begin", job)
    if "rescued" not in job.meta:
        await _gate()
    note("end", job)


@job
async def gated_twice(job: RunningJob) -> None:
    """Waits for one gate the first time, and for another when it was rescued."""
    note("begin", job)
    await _gate("2" if "rescued" in job.meta else "")
    note("end", job)


async def enqueue_until_told() -> None:
    """Enqueue without end, one job and several in turn, whatever happens to the server; the gate ends it."""
    while not _is_open():
        try:
            stored = [await app.enqueue(brief.new())]
            _acknowledge([one.id for one in stored])
            stored = await app.enqueue_all(brief_in_thread.new() for _ in range(10))
            _acknowledge([one.id for one in stored])
        except DatabaseUnavailable as error:
            log.info("an outage: %s", error)
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.01)
    await app.close()


def _acknowledge(ids: list[int | None]) -> None:
    with Path(os.environ["ACKNOWLEDGED"]).open("a") as file:
        file.write("".join(f"{id}\n" for id in ids))


def _is_open(which: str = "") -> bool:
    return Path(os.environ["GATE"] + which).exists()


async def _gate(which: str = "") -> None:
    await eventually(lambda: _is_open(which), timeout=600)
