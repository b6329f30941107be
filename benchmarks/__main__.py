"""The command line of the benchmark, and the order in which everybody takes a turn."""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

from benchmarks import databases
from benchmarks.contender import Form, forms
from benchmarks.databases import Refused, Server
from benchmarks.process import Bench, Failed
from benchmarks.report import environment, report
from benchmarks.results import Measurement, Results
from benchmarks.workloads import WORKLOADS


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the workers are ended, too
    options = parsed()
    try:
        server = databases.server(options.database)
        server.check()
    except Refused as refused:
        print(refused, file=sys.stderr)
        return 2
    return run(server, options)


def run(server: Server, options: argparse.Namespace) -> int:
    groups = options.contenders or list(server.contenders)
    if unknown := set(groups) - set(server.contenders):
        print(f"--contenders: {expected(server.contenders, unknown)} on {server.title}", file=sys.stderr)
        return 2
    found, missing = forms({name: server.contenders[name] for name in server.contenders if name in groups})
    head = [environment(server, {form.group: form.module for form in found}), *absent(missing)]
    measurements = []
    for measurement in measured(server, found, options):
        print(progress(measurement), file=sys.stderr, flush=True)
        measurements.append(measurement)
    results = Results(measurements)
    print(report(server, results, head))
    if options.json:
        text = {
            "environment": head,
            "options": shown(options),
            "measurements": list(map(asdict, measurements)),
        }
        options.json.write_text(json.dumps(text, indent=1) + "\n")
    return 1 if results.failures() else 0


def parsed() -> argparse.Namespace:
    usual = [name for name in WORKLOADS if name != "memory"]
    parser = argparse.ArgumentParser(prog="scripts/bench", description=sys.modules["benchmarks"].__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add(
        "--database",
        default="sqlite",
        metavar="URL",
        help="postgresql://user@host:port/name, where databases may be made and dropped (%(default)s)",
    )
    add("--jobs", type=positive, default=20_000, help="jobs of a drain and of a bulk insert (%(default)s)")
    add("--limit", type=positive, default=100, help="jobs of a queue that run at once (%(default)s)")
    add("--reps", type=positive, default=3, help="repetitions of each measurement (%(default)s)")
    add("--only", type=among(*WORKLOADS), default=usual, help=f"workloads, by comma: {', '.join(WORKLOADS)}")
    add(
        "--all",
        action="store_true",
        help="every workload; without it memory runs only when asked for by --only",
    )
    add("--contenders", type=listed, help=f"by comma, of those on that database: {contenders()}")
    add("--memory-jobs", type=positive, default=1_000_000, help="jobs of the memory workload (%(default)s)")
    add("--folder", type=Path, help="where the database files are made (the system's temporary folder)")
    add("--json", type=Path, metavar="FILE", help="write every measurement to this file, too")
    options = parser.parse_args()
    options.only = list(WORKLOADS) if options.all else options.only
    return options


def contenders() -> str:
    kinds = (databases.SQLite, databases.Postgres)
    return "; ".join(f"{kind.title}: {', '.join(kind.contenders)}" for kind in kinds)


def positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive number, got: {text}")
    return number


def listed(text: str) -> list[str]:
    return text.split(",")


def among(*names: str) -> Callable[[str], list[str]]:
    """Reads a list of some of these names, by comma."""

    def chosen(text: str) -> list[str]:
        if unknown := set(listed(text)) - set(names):
            raise argparse.ArgumentTypeError(expected(names, unknown))
        return [name for name in names if name in listed(text)]

    return chosen


def expected(names: Iterable[str], unknown: set[str]) -> str:
    return f"expected some of {','.join(names)}, got: {','.join(sorted(unknown))}"


def absent(missing: dict[str, str]) -> Iterator[str]:
    for name, reason in missing.items():
        yield f"Not installed here, so not measured: {name} ({reason})."


def measured(server: Server, found: list[Form], options: argparse.Namespace) -> Iterator[Measurement]:
    """Every measurement, the contenders taking turns within each repetition, and another one beginning."""
    for repetition in range(options.reps):
        start = repetition % max(len(found), 1)
        for name in options.only:
            for form in found[start:] + found[:start]:
                if name in form.workloads and (WORKLOADS[name].repeated or repetition == 0):
                    yield measure(server, options, name, form, repetition)


def measure(
    server: Server, options: argparse.Namespace, name: str, form: Form, repetition: int
) -> Measurement:
    figures: dict[str, float] = {}
    error = None
    unusable: tuple[type[Exception], ...] = (Failed, subprocess.TimeoutExpired, *server.errors)
    try:
        figures = figured(server, options, name, form)
    except unusable as failure:
        error = str(failure)
    return Measurement(
        workload=name, contender=form.name, repetition=repetition, figures=figures, error=error
    )


def figured(server: Server, options: argparse.Namespace, name: str, form: Form) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="staffa-bench-", dir=options.folder) as folder:
        database = server.fresh(Path(folder))
        try:
            bench = Bench(
                form=form,
                database=database,
                folder=Path(folder),
                jobs=options.jobs,
                limit=options.limit,
                memory_jobs=options.memory_jobs,
            )
            bench.call("prepare")
            return WORKLOADS[name].measure(bench)
        finally:
            database.drop()


def progress(m: Measurement) -> str:
    titles = WORKLOADS[m.workload].figures
    figures = ", ".join(f"{title} {m.figures[key]:,.1f}" for key, title in titles.items() if key in m.figures)
    return f"{m.repetition + 1} {m.workload:8} {m.contender:14} {m.error or figures}"


def shown(options: argparse.Namespace) -> dict[str, object]:
    return {
        name: value for name, value in vars(options).items() if name not in ("json", "folder", "database")
    }


if __name__ == "__main__":
    sys.exit(main())
