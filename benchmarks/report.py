"""The report in Markdown: a table for each workload, then the targets."""

import platform
import sqlite3
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field

import psutil

from benchmarks import loops
from benchmarks.contender import contender
from benchmarks.workloads import WORKLOADS, Workload

# To whom the others are compared, where they were measured.
REFERENCES = ("floor-full", "floor-normal", "huey-full", "huey-off")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What one repetition of a workload gave for a contender."""

    workload: str
    contender: str
    repetition: int
    figures: dict[str, float] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """A figure of a contender."""

    workload: str
    figure: str
    contender: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a figure, or its quotient by another one, has to reach."""

    text: str
    figure: Source
    by: Source | None = None
    at_least: float | None = None
    at_most: float | None = None

    def value(self, results: "Results") -> float | None:
        return results.quotient(self.figure, self.by) if self.by else results.median(self.figure)

    def met(self, value: float) -> bool:
        if self.at_least is not None:
            return value >= self.at_least
        return self.at_most is None or value <= self.at_most


def _share(workload: str, least: float, ours: str, floor: str) -> Target:
    return Target(
        text=f"{workload}: {ours} ÷ {floor}, at least {least}",
        figure=Source(workload, "jobs_s", ours),
        by=Source(workload, "jobs_s", floor),
        at_least=least,
    )


def _idle(queues: int, text: str) -> Target:
    return Target(
        text=f"idle: statements/s with {text}, at most 2",
        figure=Source("idle", f"queues_{queues}", "staffa-full"),
        at_most=2,
    )


TARGETS = (
    _share("drain", 0.35, "staffa-full", "floor-full"),
    _share("drain", 0.35, "staffa-normal", "floor-normal"),
    _share("drain", 0.35, "staffa-full", "floor-normal"),
    _share("drain", 1.0, "staffa-full", "huey-full"),
    _share("drain", 1.0, "staffa-full", "huey-off"),
    _share("bulk", 0.4, "staffa-full", "floor-full"),
    _share("bulk", 0.4, "staffa-normal", "floor-normal"),
    Target(
        text="latency: p50 within a process ÷ median single insert, at most 3",
        figure=Source("latency", "in_p50", "staffa-full"),
        by=Source("single", "p50", "staffa-full"),
        at_most=3,
    ),
    Target(
        text="threads: drain of `def` jobs ÷ drain of `async def` jobs, at least 0.4",
        figure=Source("threads", "jobs_s", "staffa-full"),
        by=Source("drain", "jobs_s", "staffa-full"),
        at_least=0.4,
    ),
    _idle(1, "1 queue"),
    _idle(50, "50 queues"),
    Target(
        text="memory: MiB grown after the first tenth of the jobs, at most 5",
        figure=Source("memory", "growth", "staffa-full"),
        at_most=5,
    ),
)


class Results:
    """All measurements of a run, by figure."""

    def __init__(self, measurements: list[Measurement]) -> None:
        self.measurements = measurements

    def contenders(self, workload: str) -> list[str]:
        """Who took part, in the order of their first turn."""
        return list(dict.fromkeys(m.contender for m in self.of(workload)))

    def of(self, workload: str) -> list[Measurement]:
        return [m for m in self.measurements if m.workload == workload]

    def values(self, source: Source) -> dict[int, float]:
        """The figure in each repetition that gave it."""
        return {
            m.repetition: m.figures[source.figure]
            for m in self.of(source.workload)
            if m.contender == source.contender and source.figure in m.figures
        }

    def median(self, source: Source) -> float | None:
        values = self.values(source).values()
        return statistics.median(values) if values else None

    def quotient(self, source: Source, by: Source) -> float | None:
        """The median of the quotients within each repetition: what slows a machine down slows both."""
        over, under = self.values(source), self.values(by)
        quotients = [over[n] / under[n] for n in over if under.get(n)]
        return statistics.median(quotients) if quotients else None

    def failures(self) -> list[Measurement]:
        return [m for m in self.measurements if m.error]


def environment(groups: list[str]) -> str:
    """What was measured, and with what."""
    contenders = ", ".join(contender(group).description() for group in groups)
    return (
        f"{contenders}. SQLite {sqlite3.sqlite_version}, Python {platform.python_version()}, "
        f"the event loop of {loops.NAME}, {psutil.cpu_count()} cores."
    )


def report(results: Results, head: str) -> str:
    """The whole report."""
    parts = [
        head,
        "Medians (and the lowest and highest) of the repetitions; ÷ is the median of the quotients of the first "
        "figure within each repetition. The suffix of a name is its `PRAGMA synchronous`.",
    ]
    for name, workload in WORKLOADS.items():
        if results.contenders(name):
            parts.append(f"### {workload.title}\n\n" + "\n".join(_table(results, name, workload)))
            parts.extend(_details(results, name))
    parts.append("### targets\n\n" + "\n".join(_verdict(results, target) for target in TARGETS))
    parts.extend(f"FAILED: {m.workload} of {m.contender}: {m.error}" for m in results.failures())
    return "\n\n".join(parts)


def _table(results: Results, name: str, workload: Workload) -> Iterator[str]:
    contenders = results.contenders(name)
    references = [reference for reference in REFERENCES if reference in contenders]
    heads = ["contender", *workload.figures.values(), *(f"÷ {reference}" for reference in references)]
    yield _row(heads)
    yield "|---|" + "--:|" * (len(heads) - 1)
    for one in contenders:
        cells = (_cell(results, Source(name, figure, one), workload.digits) for figure in workload.figures)
        yield _row([one, *cells, *_quotients(results, name, one, references)])


def _cell(results: Results, source: Source, digits: int) -> str:
    values = results.values(source).values()
    if not values:
        return "–"
    low, median, high = (
        f"{value:,.{digits}f}" for value in (min(values), statistics.median(values), max(values))
    )
    return f"{median} ({low} to {high})" if len(values) > 1 else median


def _quotients(results: Results, name: str, one: str, references: list[str]) -> Iterator[str]:
    figure = next(iter(WORKLOADS[name].figures))
    for reference in references:
        quotient = results.quotient(Source(name, figure, one), Source(name, figure, reference))
        yield f"{quotient:,.2f}" if quotient is not None else "–"


def _details(results: Results, name: str) -> Iterator[str]:
    """What stands below a table: the statements of an idle process, RSS after each tenth of the jobs."""
    for m in results.of(name):
        sent = {key: rate for key, rate in m.figures.items() if key.startswith("sent with")}
        if sent:
            yield "\n".join(f"* {m.contender}, {rate:.1f}/s, {key[:160]}" for key, rate in sent.items())
        rss = [f"{value:.1f}" for key, value in m.figures.items() if key.startswith("rss_")]
        if rss:
            yield f"* {m.contender}, RSS after each tenth: {', '.join(rss)}"


def _verdict(results: Results, target: Target) -> str:
    value = target.value(results)
    if value is None:
        return f"* not measured: {target.text}"
    return f"* {'met' if target.met(value) else 'NOT met'}: {target.text}: {value:,.2f}"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
