"""The jobs that worker processes of the tests run. Each notes its beginning and end in the file `NOTES`."""

import asyncio
import os
import time

from staffa import RunningJob, Staffa, job

app = Staffa(
    queues={"default": 10},
    grace_period=float(os.environ.get("GRACE", "15")),
    stage_interval=float(os.environ.get("STAGE", "1")),
)


def note(what: str, job: RunningJob) -> None:
    """One line, written by one system call, so that lines of several processes do not mix."""
    file = os.open(os.environ["NOTES"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, f"{what} {job.id} {job.attempt} {os.getpid()}\n".encode())
    finally:
        os.close(file)


@job
async def quick(job: RunningJob) -> None:
    note("begin", job)
    note("end", job)


@job
def quick_in_thread(job: RunningJob) -> None:
    note("begin", job)
    time.sleep(0.001)
    note("end", job)


@job
async def endless(job: RunningJob) -> None:
    note("begin", job)
    await asyncio.Event().wait()


@job
def endless_in_thread(job: RunningJob) -> None:
    note("begin", job)
    while True:
        time.sleep(0.1)


@job
async def deaf(job: RunningJob) -> None:
    note("begin", job)
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            note("cancelled", job)


@job
async def first_time_endless(job: RunningJob) -> None:
    note("begin", job)
    if "rescued" not in job.meta:
        await asyncio.Event().wait()
    note("end", job)


async def enqueue_for(seconds: float) -> None:
    """Enqueue one job after another, and now and then many at once, for so long."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        await app.enqueue(quick.new())
        await app.enqueue_all(quick.new() for _ in range(20))
        await asyncio.sleep(0.01)
    await app.close()
