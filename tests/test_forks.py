"""Forks beside open connections: whatever a child has committed is in the file, and nobody waits for ever."""

import subprocess
import sys
from pathlib import Path

import pytest

from staffa.connections import sqlite_handle

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="processes cannot fork there")

# In a process of its own: pytest's threads and connections are no part of the story.
COMMON = """
import asyncio, os, sqlite3, sys, threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)
from staffa import Staffa, job

path = sys.argv[1]
url = "sqlite:///" + path + "?busy_timeout=60"

@job(name="forks.note")
async def note(n: int) -> None: ...

async def enqueue(app, count):
    return [(await app.enqueue(note.new(n))).id for n in range(count)]

def fork(work):
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return child

def wait(child):
    assert os.waitpid(child, 0)[1] == 0

def stored():
    connection = sqlite3.connect(path, timeout=60)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return [row[0] for row in connection.execute("SELECT id FROM oban_jobs")]
    finally:
        connection.close()
"""


def scenario(tmp_path: Path, text: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", COMMON + text, str(tmp_path / "jobs.db")],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_nothing_a_child_has_committed_is_lost_when_the_parent_closes_meanwhile(tmp_path: Path) -> None:
    output = scenario(
        tmp_path,
        """
app = Staffa(url)
own = asyncio.run(enqueue(app, 5))
reading, writing = os.pipe()

def work():
    first = asyncio.run(enqueue(app, 20))
    os.write(writing, b"x")
    os.read(pause, 1)
    rest = asyncio.run(enqueue(app, 20))
    assert len(set(first + rest)) == 40

pause, go_on = os.pipe()
children = [fork(work) for _ in range(3)]
own += asyncio.run(enqueue(app, 5))
for _ in children:
    os.read(reading, 1)
asyncio.run(app.close())
os.write(go_on, b"xxx")
for child in children:
    wait(child)
ids = stored()
assert len(ids) == len(set(ids)) == 130, len(ids)
assert set(own) <= set(ids)
""",
    )
    assert output == ""


def test_a_fork_beside_threads_that_enqueue_and_beat_leaves_everybody_able_to_write(tmp_path: Path) -> None:
    output = scenario(
        tmp_path,
        """
from staffa.connections import connections_for, parse_url
from staffa.steps import Statement
app = Staffa(url)
counts = [len(asyncio.run(enqueue(app, 1)))]
stop = threading.Event()

def steadily():
    while not stop.is_set():
        counts.append(len(asyncio.run(enqueue(app, 7))))
        stop.wait(0.005)

def beat():
    async def beats():
        own = await connections_for(parse_url(url)).dedicated()
        while not stop.is_set():
            await own.run(iter_one("UPDATE oban_jobs SET priority = 1 WHERE id = 1"))
            stop.wait(0.005)  # SQLite's lock is not fair: who never pauses keeps everybody else out
        await own.close()
    asyncio.run(beats())

def iter_one(text):
    yield Statement(text)

threads = [threading.Thread(target=steadily), threading.Thread(target=steadily), threading.Thread(target=beat)]
for thread in threads:
    thread.start()
children = 0
for _ in range(6):
    wait(fork(lambda: asyncio.run(enqueue(app, 5))))
    children += 5
stop.set()
for thread in threads:
    thread.join()
asyncio.run(app.close())
ids = stored()
assert len(ids) == len(set(ids)) == sum(counts) + children, (len(ids), sum(counts), children)
""",
    )
    assert output == ""


def test_no_connection_of_ours_exists_at_a_fork_and_watchers_are_told_after_it(tmp_path: Path) -> None:
    output = scenario(
        tmp_path,
        """
from staffa.connections import connections_for, parse_url, sqlite_handle
app = Staffa(url)
asyncio.run(enqueue(app, 1))
asyncio.run(app.list_jobs())
connections = connections_for(parse_url(url))
dedicated = asyncio.run(connections.dedicated())
looked, told = threading.Event(), threading.Event()
connections.watch(told.set)
writer = connections._opened()
while writer._watched is None:
    looked.wait(0.01)

def work():
    assert not [name for name in os.listdir("/proc/self/fd") if is_ours(name)]

def is_ours(name):
    try:
        return os.readlink("/proc/self/fd/" + name).startswith(path)
    except OSError:
        return False

if os.path.isdir("/proc/self/fd"):
    assert [name for name in os.listdir("/proc/self/fd") if is_ours(name)]
    wait(fork(work))
else:
    wait(fork(lambda: None))
assert told.wait(60)
""",
    )
    assert output == ""


def test_a_fork_from_within_the_writer_thread_does_not_wait_for_itself(tmp_path: Path) -> None:
    output = scenario(
        tmp_path,
        """
from staffa.connections import connections_for, parse_url
from staffa.steps import Statement
connections = connections_for(parse_url(url))

def steps():
    yield Statement("CREATE TABLE things (id integer)")
    wait(fork(lambda: None))  # would wait for the turn of this very thread, and say something else

async def run():
    await connections.run(steps())
    await connections.close()

asyncio.run(run())
""",
    )
    assert "in the same thread" in output


def test_a_fork_goes_on_with_a_warning_when_a_connection_does_not_become_free(tmp_path: Path) -> None:
    output = scenario(
        tmp_path,
        """
from staffa.connections import connections_for, parse_url
from staffa.steps import Statement
connections = connections_for(parse_url("sqlite:///" + path + "?busy_timeout=0"))
started, go_on = threading.Event(), threading.Event()

def steps():
    started.set()
    go_on.wait(120)
    yield Statement("CREATE TABLE things (id integer)")

async def run():
    held = asyncio.ensure_future(connections.run(steps()))
    await asyncio.to_thread(started.wait, 60)
    wait(fork(lambda: None))
    go_on.set()
    await held
    await connections.close()

asyncio.run(run())
""",
    )
    assert "does not become free" in output


def test_nobody_is_paused_when_nobody_forks() -> None:
    assert not sqlite_handle.forking_here()


def test_a_child_of_a_running_parent_can_be_started_itself_and_stops_nothing_of_the_parents(
    tmp_path: Path,
) -> None:
    output = scenario(
        tmp_path,
        """
import concurrent.futures.thread  # now: imported during the fork, its own hooks would be half in place
app = Staffa(url, queues={"default": 5})
started, leave = threading.Event(), threading.Event()

async def serve():
    async with app:
        started.set()
        await asyncio.to_thread(leave.wait)

async def begin():
    await app.stop()  # the parent's is not ours to stop
    async with app:
        assert app.running
        return {queue.node for queue in await app.list_queues() if queue.alive}

def work():
    assert len(asyncio.run(begin())) == 2

parent = threading.Thread(target=asyncio.run, args=[serve()])
parent.start()
started.wait()
wait(fork(work))
assert app.running
leave.set()
parent.join()
""",
    )
    assert output == ""
