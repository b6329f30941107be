"""The report in Markdown: a table for each workload, then the targets."""

import platform
import statistics
from collections.abc import Iterator

import psutil

from benchmarks import loops
from benchmarks.contender import load
from benchmarks.databases import Server
from benchmarks.results import Results, Source
from benchmarks.targets import REFERENCES, TARGETS, Target
from benchmarks.workloads import WORKLOADS, Workload


def environment(server: Server, modules: dict[str, str]) -> str:
    """What was measured, and with what."""
    contenders = ", ".join(load(module).description() for module in modules.values())
    return (
        f"{contenders}. {server.description()}, Python {platform.python_version()}, "
        f"the event loop of {loops.NAME}, {psutil.cpu_count()} cores."
    )


def report(server: Server, results: Results, head: list[str]) -> str:
    """The whole report."""
    parts = [
        *head,
        "Medians (and the lowest and highest) of the repetitions; ÷ is the median of the quotients of the first "
        f"figure within each repetition. {server.forms}",
    ]
    references = REFERENCES[server.title]
    for name, workload in WORKLOADS.items():
        if results.contenders(name):
            table = "\n".join(_table(results, name, workload, references))
            parts.append(f"### {workload.title}\n\n{table}")
            parts.extend(_details(results, name))
    verdicts = "\n".join(_verdict(results, target) for target in TARGETS[server.title])
    parts.append(f"### targets\n\n{verdicts}")
    parts.extend(f"FAILED: {m.workload} of {m.contender}: {m.error}" for m in results.failures())
    return "\n\n".join(parts)


def _table(results: Results, name: str, workload: Workload, references: tuple[str, ...]) -> Iterator[str]:
    contenders, first = results.contenders(name), next(iter(workload.figures))
    sources = [source for one in references if results.values(source := Source(name, first, one))]
    heads = ["contender", *workload.figures.values(), *(f"÷ {source.contender}" for source in sources)]
    yield _row(heads)
    yield "|---|" + "--:|" * (len(heads) - 1)
    for one in contenders:
        cells = (_cell(results, Source(name, figure, one), workload.digits) for figure in workload.figures)
        quotients = (_quotient(results, Source(name, first, one), source) for source in sources)
        yield _row([one, *cells, *quotients])


def _cell(results: Results, source: Source, digits: int) -> str:
    values = results.values(source).values()
    if not values:
        return "–"
    low, median, high = (
        f"{value:,.{digits}f}" for value in (min(values), statistics.median(values), max(values))
    )
    return f"{median} ({low} to {high})" if len(values) > 1 else median


def _quotient(results: Results, source: Source, by: Source) -> str:
    quotient = results.quotient(source, by)
    return "–" if quotient is None else f"{quotient:,.2f}"


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
