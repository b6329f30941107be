"""What each index on `oban_jobs` costs a job, and what it buys: `python -m benchmarks.indexes postgresql://…`.

The cost is a job's whole life (insert in bulk, claim, ack), once with all of Staffa's indexes and once without the
one in question: the server's own processor time, where this machine can tell, and the write-ahead log. What it buys
is the time of the statement that wants it, on a table with many finished rows, with and without it.
"""

import argparse
import os
import statistics
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import asyncpg

from benchmarks import loops
from staffa.connections import Connections, connections_for, parse_url
from staffa.engine import Ack, Beat, Engine
from staffa.engines import engine_for
from staffa.jobs import Job
from staffa.migrations.postgres import INDEXES
from staffa.steps import Steps

OBANS = {
    "Oban's (state, queue, priority, scheduled_at, id)": (
        "CREATE INDEX extra ON oban_jobs (state, queue, priority, scheduled_at, id)",
    ),
    "Oban's two GIN (args; meta)": (
        "CREATE INDEX extra ON oban_jobs USING gin (args)",
        "CREATE INDEX extra_2 ON oban_jobs USING gin (meta)",
    ),
    "GIN (args) alone, as `--args-index` makes it": ("CREATE INDEX extra ON oban_jobs USING gin (args)",),
}

BATCH = 100
BEAT = Beat(str(uuid.uuid4()), "bench", "bench", "default", {})


class Bench:
    """A database of its own, its one connection for the statements, and one that looks on."""

    def __init__(self, connections: Connections, engine: Engine, onlooker: asyncpg.Connection) -> None:
        self.connections = connections
        self.engine = engine
        self.onlooker = onlooker

    async def run(self, steps: Steps[Any]) -> Any:
        return await self.connections.run(steps)

    async def execute(self, *texts: str) -> None:
        for text in texts:
            await self.onlooker.execute(text)

    async def life(self, jobs: int) -> tuple[float, float]:
        """Microseconds and bytes of log that a job costs the server."""
        await self.execute("TRUNCATE oban_jobs", "CHECKPOINT")
        pid = await self.onlooker.fetchval(
            "SELECT pid FROM pg_stat_activity WHERE application_name = 'staffa' AND datname = current_database()"
        )
        log, spent = await self.log(), cpu(pid)
        for _ in range(jobs // 1_000):
            await self.run(
                self.engine.insert_jobs([Job(worker="bench", args={"n": n}) for n in range(1_000)])
            )
        beat = Beat(str(uuid.uuid4()), "bench", "bench", "default", {})
        await self.run(self.engine.heartbeat([beat]))  # without a row, a producer claims nothing
        acks: list[Ack] = []
        while True:
            claim = await self.run(self.engine.ack_and_claim(beat, acks, BATCH))
            acks = [Ack(job.id, job._token, "complete") for job in claim.jobs]
            if not acks:
                break
        return (cpu(pid) - spent) / jobs * 1e6, float(await self.log() - log) / jobs

    async def log(self) -> int:
        return int(await self.onlooker.fetchval("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn"))

    async def fill(self, rows: int) -> None:
        """Finished rows, as a table has them after some weeks, and a few of every other state."""
        await self.execute(
            "TRUNCATE oban_jobs",
            f"""
INSERT INTO oban_jobs (state, worker, args, attempt, attempted_by, attempted_at, completed_at, scheduled_at)
SELECT (CASE WHEN i % 10000 = 0 THEN 'available' WHEN i % 10000 = 1 THEN 'scheduled' WHEN i % 10000 = 2 THEN 'executing'
    ELSE 'completed' END)::oban_job_state, 'bench', jsonb_build_object('n', i), 1, ARRAY['node', 'uuid'],
    timezone('UTC', now()), timezone('UTC', now()), timezone('UTC', now()) + interval '1 hour'
FROM generate_series(1, {rows}) AS i
""",
            "VACUUM ANALYZE oban_jobs",
        )

    async def milliseconds(self, make: Callable[[], Steps[Any]]) -> float:
        times: list[float] = []
        for _ in range(7):
            before = time.perf_counter()
            await self.run(make())
            times.append(time.perf_counter() - before)
        return statistics.median(times) * 1e3


def cpu(pid: int) -> float:
    """Seconds of processor time of a server's process on this machine; the clock, where that cannot be told."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return time.perf_counter()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wanting(engine: Engine) -> dict[str, Callable[[], Steps[Any]]]:
    """The statement that wants each index."""
    beat = BEAT
    ages = dict.fromkeys(("completed", "discarded", "cancelled"), 3600.0)
    return {
        "oban_jobs_available": lambda: engine.ack_and_claim(beat._replace(queue="empty"), [], 100),
        "oban_jobs_due": lambda: engine.stage_jobs(5_000, []),
        "oban_jobs_executing": lambda: engine.heartbeat([beat]),
        **{
            f"oban_jobs_{state}": lambda state=state: engine.prune_jobs({state: ages[state]}, 10)
            for state in ages
        },
    }


async def costs(bench: Bench, jobs: int, reps: int) -> list[str]:
    """One line an index: the life of a job with and without it."""
    texts = {
        index.name: f"CREATE INDEX {index.name} {index.text.replace('{jobs}', 'oban_jobs')}"
        for index in INDEXES
    }
    changes: dict[str, tuple[Sequence[str], Sequence[str]]] = {"all of Staffa's indexes": ((), ())}
    for name, text in texts.items():
        changes[f"without {name}"] = ((f"DROP INDEX {name}",), (text,))
    for name, extra in OBANS.items():
        changes[f"with {name} besides"] = (
            extra,
            ("DROP INDEX IF EXISTS extra", "DROP INDEX IF EXISTS extra_2"),
        )
    lives: dict[str, list[tuple[float, float]]] = {name: [] for name in changes}
    for _ in range(reps):
        for name, (before, after) in changes.items():
            await bench.execute(*before)
            lives[name].append(await bench.life(jobs))
            await bench.execute(*after)
    lines = ["| indexes | server, µs a job | log, bytes a job |", "|---|--:|--:|"]
    for name, measured in lives.items():
        micros, log = (statistics.median(one) for one in zip(*measured, strict=True))
        lines.append(f"| {name} | {micros:.1f} | {log:,.0f} |")
    return lines


async def gains(bench: Bench, rows: int) -> list[str]:
    """One line an index: the statement that wants it, with and without it."""
    await bench.fill(rows)
    await bench.run(bench.engine.heartbeat([BEAT]))
    texts = {
        index.name: f"CREATE INDEX {index.name} {index.text.replace('{jobs}', 'oban_jobs')}"
        for index in INDEXES
    }
    lines = [f"| index | its statement, ms, {rows:,} rows | without it |", "|---|--:|--:|"]
    for name, make in wanting(bench.engine).items():
        with_it = await bench.milliseconds(make)
        await bench.execute(f"DROP INDEX {name}")
        without = await bench.milliseconds(make)
        await bench.execute(texts[name])
        lines.append(f"| `{name}` | {with_it:.2f} | {without:.1f} |")
    return lines


async def measured(url: str, jobs: int, rows: int, reps: int) -> None:
    name = f"staffa_bench_{os.getpid()}"
    server = await asyncpg.connect(url)
    await server.execute(f"CREATE DATABASE {name}")
    try:
        own = parse_url(f"{url.rpartition('/')[0]}/{name}?pool_size=1")
        connections, engine = connections_for(own), engine_for("postgres")
        onlooker = await asyncpg.connect(
            f"{url.rpartition('/')[0]}/{name}", server_settings={"application_name": "onlooker"}
        )
        bench = Bench(connections, engine, onlooker)
        await bench.run(engine.migrations.up())
        # The server's autovacuum would take part where it likes.
        await bench.execute("ALTER TABLE oban_jobs SET (autovacuum_enabled = off)")
        for line in await costs(bench, jobs, reps):
            print(line)
        print()
        for line in await gains(bench, rows):
            print(line)
        await onlooker.close()
        await connections.close()
    finally:
        await server.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await server.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.indexes", description=sys.modules[__name__].__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("database", metavar="URL")
    parser.add_argument("--jobs", type=int, default=20_000)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--reps", type=int, default=3)
    options = parser.parse_args()
    loops.run(measured(options.database, options.jobs, options.rows, options.reps))


if __name__ == "__main__":
    main()
