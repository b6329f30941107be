"""What is measured. A workload takes a `Bench` and returns its figures, or raises `Failed`."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import psutil

from benchmarks.probe import Probe
from benchmarks.process import Bench, Failed, Worker

Figures = dict[str, float]

SINGLES = 2_000
LATENCIES, WARM = 300, 20
GAP_WITHIN, GAP = 0.005, 0.020
SETTLE, IDLE = 12.0, 10.0  # an idle connection tells PostgreSQL of its last transactions after 10 s
BATCH = 10_000
MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A workload, its figures (key: heading) of which the first is compared, and whether it is repeated."""

    title: str
    measure: Callable[[Bench], Figures]
    figures: dict[str, str]
    digits: int = 0
    repeated: bool = True


def drain(bench: Bench) -> Figures:
    return _drain(bench, threads=False)


def threads(bench: Bench) -> Figures:
    return _drain(bench, threads=True)


def _drain(bench: Bench, *, threads: bool) -> Figures:
    bench.call("fill", jobs=bench.jobs, threads=threads)
    bench.database.settle()
    probe = bench.probe(bench.jobs)
    with bench.running("work", probe=probe, queues=1) as worker:
        # While jobs run only shared memory is looked at; the database is asked when all of them have started.
        worker.wait(partial(_started, probe, bench.jobs))
        end = _finished(bench, worker)
        _verify(bench, probe)
    return {"jobs_s": bench.jobs * 1e9 / (end - probe.first_ns)}


def _finished(bench: Bench, worker: Worker) -> int:
    """The moment at which the database has no unfinished job."""
    asked = 0

    def finished() -> bool:
        nonlocal asked
        asked = time.monotonic_ns()
        return bench.database.ask(bench.kind.unfinished) == 0

    worker.wait(finished, every=0.002)
    return asked


def _verify(bench: Bench, probe: Probe) -> None:
    """Every job has run once, and its row says so."""
    if probe.bodies != bench.jobs or 0 in probe.started_ns:
        raise Failed(f"{probe.bodies} bodies for {bench.jobs} jobs, {probe.started_ns.count(0)} jobs not run")
    if bench.kind.completed and (rows := bench.database.ask(bench.kind.completed)) != bench.jobs:
        raise Failed(f"{rows} completed rows for {bench.jobs} jobs")


def bulk(bench: Bench) -> Figures:
    seconds = bench.call("bulk", jobs=bench.jobs)
    _verify_inserted(bench, bench.jobs)
    return {"jobs_s": bench.jobs / seconds}


def single(bench: Bench) -> Figures:
    seconds = bench.call("single", jobs=SINGLES)
    _verify_inserted(bench, SINGLES)
    return {"jobs_s": SINGLES / sum(seconds), "p50": statistics.median(seconds) * 1e6}


def _verify_inserted(bench: Bench, jobs: int) -> None:
    if (rows := bench.database.ask(bench.kind.unfinished)) != jobs + 1:
        raise Failed(f"{rows} rows for {jobs} jobs and the one before them")


def within(bench: Bench) -> Figures:
    probe = bench.probe(LATENCIES + WARM)
    moments = bench.call("together", probe=probe, jobs=LATENCIES + WARM, gap=GAP_WITHIN)
    return _percentiles(moments, probe)


def latency(bench: Bench) -> Figures:
    probe = bench.probe(LATENCIES + WARM)
    with bench.running("work", probe=probe, queues=1) as worker:
        moments = bench.call("paced", jobs=LATENCIES + WARM, gap=GAP)
        worker.wait(partial(_started, probe, LATENCIES + WARM), timeout=30)
    return _percentiles(moments, probe)


def _percentiles(moments: list[int], probe: Probe) -> Figures:
    latencies = _latencies(moments, probe)
    return {f"p{percent}": percentile(latencies, percent) for percent in (50, 95, 99)}


def _latencies(moments: list[int], probe: Probe) -> list[float]:
    """Microseconds from just before each enqueue to the start of its body, the first few left out."""
    started = probe.started_ns
    if 0 in started:
        raise Failed(f"{started.count(0)} of {len(started)} jobs have not run")
    return [(start - moment) / 1e3 for moment, start in zip(moments, started, strict=True)][WARM:]


def idle(bench: Bench) -> Figures:
    figures = _idle(bench, 1)
    return figures | _idle(bench, 50) if bench.kind.many_queues else figures


def _idle(bench: Bench, queues: int) -> Figures:
    with bench.running("work", probe=bench.probe(), traced=True, queues=queues) as worker:
        process = psutil.Process(worker.process.pid)
        time.sleep(SETTLE)
        before, cpu_before = bench.database.statements(), sum(process.cpu_times()[:2])
        time.sleep(IDLE)
        sent, cpu = bench.database.statements() - before, sum(process.cpu_times()[:2]) - cpu_before
    rates = {
        f"sent with {queues} queues: {statement}": times / IDLE for statement, times in sent.most_common(10)
    }
    return {f"queues_{queues}": sent.total() / IDLE, f"cpu_{queues}": cpu / IDLE * 100} | rates


def memory(bench: Bench) -> Figures:
    step = max(bench.memory_jobs // 10, 1)
    probe = bench.probe()
    samples: list[float] = []
    began = time.monotonic()
    with bench.running("churn", probe=probe, jobs=bench.memory_jobs, batch=min(BATCH, step)) as worker:
        process = psutil.Process(worker.process.pid)
        for jobs in range(step, step * 10 + 1, step):
            worker.wait(partial(_started, probe, jobs), every=0.02)
            samples.append(process.memory_info().rss / MIB)
    seconds = time.monotonic() - began
    rss = {f"rss_{n}": sample for n, sample in enumerate(samples, 1)}
    return {"growth": samples[-1] - samples[0], "jobs_s": step * 10 / seconds} | rss


def _started(probe: Probe, jobs: int) -> bool:
    return probe.bodies >= jobs


def percentile(values: list[float], percent: int) -> float:
    return sorted(values)[len(values) * percent // 100]


PERCENTILES = {"p50": "p50", "p95": "p95", "p99": "p99"}
WORKLOADS = {
    "drain": Workload(
        title="drain: `async def` jobs that wait in the database, one process",
        measure=drain,
        figures={"jobs_s": "jobs/s"},
    ),
    "threads": Workload(
        title="threads: the same with `def` jobs",
        measure=threads,
        figures={"jobs_s": "jobs/s"},
    ),
    "bulk": Workload(
        title="bulk: inserting all jobs with one call, building them included",
        measure=bulk,
        figures={"jobs_s": "jobs/s"},
    ),
    "single": Workload(
        title=f"single: inserting {SINGLES:,} jobs one by one",
        measure=single,
        figures={"jobs_s": "jobs/s", "p50": "p50 µs"},
    ),
    "within": Workload(
        title="within: from the call that enqueues to the start of the body in the same process, in µs",
        measure=within,
        figures=PERCENTILES,
    ),
    "latency": Workload(
        title="latency: from the call that enqueues to the start of the body in another process, in µs",
        measure=latency,
        figures=PERCENTILES,
    ),
    "idle": Workload(
        title="idle: statements/s of a process with nothing to do, and its share of a core",
        measure=idle,
        figures={
            "queues_1": "1 queue",
            "cpu_1": "CPU %",
            "queues_50": "50 queues",
            "cpu_50": "CPU %, 50 queues",
        },
        digits=1,
        repeated=False,
    ),
    "memory": Workload(
        title="memory: jobs inserted and run by one process; MiB that RSS grew after the first tenth of them",
        measure=memory,
        figures={
            "growth": "growth",
            "rss_1": "RSS after 1/10",
            "rss_5": "after 5/10",
            "rss_10": "after all",
            "jobs_s": "jobs/s",
        },
        digits=1,
        repeated=False,
    ),
}
