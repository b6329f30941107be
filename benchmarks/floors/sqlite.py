"""The floor on SQLite: the standard library's sqlite3, WAL, one table and one index, and no features at all.

Its worker acknowledges a batch and fetches the next in one transaction, for which it hops once to its only
database thread. Jobs, retries, telemetry, other processes: nothing of that exists here.
"""

import asyncio
import json
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import Any, ClassVar, NoReturn

import msgspec

from benchmarks import loops, probe
from benchmarks.contender import Contender

SCHEMA = """
CREATE TABLE jobs (
    id integer PRIMARY KEY,
    state text NOT NULL DEFAULT 'available',
    queue text NOT NULL DEFAULT 'default',
    worker text NOT NULL,
    args text NOT NULL DEFAULT '{}',
    meta text NOT NULL DEFAULT '{}',
    tags text NOT NULL DEFAULT '[]',
    errors text NOT NULL DEFAULT '[]',
    attempt integer NOT NULL DEFAULT 0,
    max_attempts integer NOT NULL DEFAULT 20,
    priority integer NOT NULL DEFAULT 0,
    attempted_by text,
    inserted_at integer NOT NULL DEFAULT 0,
    scheduled_at integer NOT NULL DEFAULT 0,
    attempted_at integer,
    cancelled_at integer,
    completed_at integer,
    discarded_at integer
);
CREATE INDEX jobs_claim ON jobs (state, queue, priority, scheduled_at, id);
"""
INSERT = "INSERT INTO jobs (worker, queue, args, inserted_at, scheduled_at) VALUES (?, ?, ?, ?, ?)"
FETCH = """
UPDATE jobs SET state = 'executing', attempt = attempt + 1, attempted_at = 2, attempted_by = 'floor'
WHERE id IN (
    SELECT id FROM jobs WHERE state = 'available' AND queue = 'default'
    ORDER BY priority, scheduled_at, id LIMIT ?
)
RETURNING *
"""
ACK = """
UPDATE jobs SET state = 'completed', completed_at = 3
WHERE id IN (SELECT value FROM json_each(?)) AND state = 'executing'
"""
ID, ARGS = 0, 4
PER_TRANSACTION = 1_000

encode = msgspec.json.encode
decode = msgspec.json.decode


class Floor(Contender):
    variants: ClassVar = dict.fromkeys(("full", "normal"), frozenset({"drain", "bulk", "single"}))
    unfinished = "SELECT count(*) FROM jobs WHERE state <> 'completed'"
    completed = "SELECT count(*) FROM jobs WHERE state = 'completed'"

    @classmethod
    def description(cls) -> str:
        return "the floor (the standard library's sqlite3 and next to nothing above it)"

    def prepare(self) -> None:
        self.connect().executescript(f"PRAGMA journal_mode = wal; {SCHEMA}")

    def fill(self, jobs: int, *, threads: bool) -> None:
        insert_many(self.connect(), jobs)

    def work(self, queues: int) -> NoReturn:
        loops.run(drain(self.connect(), self.limit))

    def bulk(self, jobs: int) -> float:
        connection = self.connect()
        insert_one(connection, 0)
        before = perf_counter()
        insert_many(connection, jobs)
        return perf_counter() - before

    def single(self, jobs: int) -> list[float]:
        connection = self.connect()
        insert_one(connection, 0)
        return [insert_one(connection, n) for n in range(jobs)]

    def connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.url.removeprefix("sqlite:///"), isolation_level=None, check_same_thread=False
        )
        connection.execute(f"PRAGMA synchronous = {self.variant}")
        connection.execute("PRAGMA cache_size = -65536")
        return connection


CONTENDER = Floor


def row(n: int) -> tuple[str, str, str, int, int]:
    return "bench.noop", "default", json.dumps({"n": n}), 1, 1


def insert_one(connection: sqlite3.Connection, n: int) -> float:
    before = perf_counter()
    connection.execute(INSERT, row(n))
    return perf_counter() - before


def insert_many(connection: sqlite3.Connection, jobs: int) -> None:
    for first in range(0, jobs, PER_TRANSACTION):
        numbers = range(first, min(first + PER_TRANSACTION, jobs))
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(INSERT, [row(n) for n in numbers])
        connection.execute("COMMIT")


async def drain(connection: sqlite3.Connection, limit: int) -> NoReturn:
    loop = asyncio.get_running_loop()
    ids: list[int] = []
    with ThreadPoolExecutor(1) as thread:
        probe.ready()
        while True:
            rows = await loop.run_in_executor(thread, ack_and_fetch, connection, ids, limit)
            for job in rows:
                probe.mark(decode(job[ARGS])["n"])
            ids = [job[ID] for job in rows]
            if not ids:
                await asyncio.sleep(0.01)


def ack_and_fetch(connection: sqlite3.Connection, ids: list[int], limit: int) -> list[tuple[Any, ...]]:
    connection.execute("BEGIN IMMEDIATE")
    if ids:
        connection.execute(ACK, (encode(ids).decode(),))
    rows = connection.execute(FETCH, (limit,)).fetchall()
    connection.execute("COMMIT")
    return rows
